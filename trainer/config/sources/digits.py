"""`digits`, `digits:0-4`, `digits:5-9/train`, `digits:1,3,7/val`: the 1,797 handwritten digits that scikit-learn carries.

8x8 grey images in 17 levels, from E. Alpaydin and C. Kaynak, Optical Recognition of Handwritten Digits, UCI, 1998.
"""

from __future__ import annotations

import gzip
import importlib.util
import re
from collections import Counter
from pathlib import Path

from trainer.config.errors import UserError, nearest
from trainer.config.sources.listing import Item, Listing


def listing(rest: str) -> Listing:
    """The digits of the chosen classes in file order; `/val` is every fifth sample of each class, `/train` the others."""
    chosen, slash, split = rest.partition("/")
    if slash and split not in ("train", "val"):
        raise UserError(f"digits:{rest}: unknown part '{split}'{nearest(split, ['train', 'val'])}")
    digits = _digits(chosen, rest)
    file = _file()
    place = {digit: index for index, digit in enumerate(digits)}
    seen: Counter[int] = Counter()
    items: list[Item] = []
    with gzip.open(file, "rt", encoding="ascii") as rows:
        for number, row in enumerate(rows):
            digit = int(row[row.rindex(",") + 1 :])
            seen[digit] += 1
            part = "val" if seen[digit] % 5 == 0 else "train"
            if digit in place and split in ("", part):
                items.append(Item(str(number), place[digit]))
    return Listing("digits", file, tuple(str(digit) for digit in digits), tuple(items))


def _digits(chosen: str, rest: str) -> list[int]:
    digits: set[int] = set()
    for part in chosen.split(",") if chosen else ["0-9"]:
        match = re.fullmatch(r"\s*([0-9])\s*(?:-\s*([0-9])\s*)?", part)
        if match is None or (match[2] and match[2] < match[1]):
            raise UserError(f"digits:{rest}: '{part}' is no digit nor a range; write such as digits:0-4, digits:1,3,7/train")
        digits |= set(range(int(match[1]), int(match[2] or match[1]) + 1))
    return sorted(digits)


def _file() -> Path:
    """The data file, found without importing scikit-learn, which takes a second."""
    spec = importlib.util.find_spec("sklearn")
    folder = Path(spec.origin).parent if spec is not None and spec.origin else Path()
    file = folder / "datasets" / "data" / "digits.csv.gz"
    if spec is None or not file.is_file():
        raise UserError("digits: scikit-learn is not installed, or without its data; pip install scikit-learn")
    return file
