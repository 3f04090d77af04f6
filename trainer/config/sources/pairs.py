"""`pairs:FOLDER?input=edges&target=photos` (two folders in FOLDER, the pictures of a pair named alike) and
`pairs:FILE.csv?input=COLUMN&target=COLUMN` (a row a pair, both paths relative to the file's folder).

Left out, the folders or columns are those called `input` and `target`.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from trainer.config.errors import UserError, nearest
from trainer.config.formats import query
from trainer.config.sources import csv, folder
from trainer.config.sources.listing import Item, Listing

_SHOWN = 3  # names in a message
_SPLITS = ("train", "training")


def listing(rest: str) -> Listing:
    """The pairs, each with the key of its input; `how` has the key of the target by it. Raises UserError with what lacks."""
    name, asked = query.parse("pairs", rest, ("input", "target"))
    root = Path(name).expanduser()
    wanted = [asked.values.get(part, part) for part in ("input", "target")]
    if wanted[0] == wanted[1]:
        raise UserError(f"pairs:{rest}: input and target are the same, '{wanted[0]}'; name two")
    root, pairs = _rows(root, wanted) if root.is_file() else _folders(root, wanted)
    items = tuple(Item(key, 0) for key in sorted(pairs))
    return Listing("pairs", root, ("images",), items, how={"targets": pairs})


def _folders(root: Path, wanted: Sequence[str]) -> tuple[Path, dict[str, str]]:
    if not root.is_dir():
        parent = root.parent
        near = nearest(root.name, [path.name for path in parent.iterdir()]) if parent.is_dir() else f"; nor is there {parent}"
        raise UserError(f"{root}: no such folder or file of pairs{near}")
    found: list[dict[str, str]] = []
    below = sorted(path.name for path in root.iterdir() if path.is_dir() and not path.name.startswith("."))
    for part, which in zip(wanted, ("input", "target"), strict=True):
        if part not in below:
            split = next((name for name in below if name.lower() in _SPLITS and (root / name / part).is_dir()), None)
            hint = f"; write pairs:{root / split}" if split else f"{nearest(part, below)}; write pairs:FOLDER?{which}=NAME"
            raise UserError(f"{root}: no folder '{part}' in it{hint}")
        keys = [f"{part}/{item.key}" for item in folder.flat(str(root / part)).items]
        stems: dict[str, str] = {}
        for key in keys:
            stem = str(Path(key.removeprefix(f"{part}/")).with_suffix(""))
            if stem in stems:
                raise UserError(f"{root}: {stems[stem]} and {key} differ in their endings alone: which is meant?")
            stems[stem] = key
        found.append(stems)
    inputs, targets = found
    _both(root, wanted, inputs, targets)
    return root, {key: targets[stem] for stem, key in inputs.items()}


def _both(root: Path, wanted: Sequence[str], inputs: dict[str, str], targets: dict[str, str]) -> None:
    """Raises UserError for pictures that have no other one, named."""
    said = []
    for own, other, there, word in ((inputs, targets, wanted[1], "target"), (targets, inputs, wanted[0], "input")):
        alone = sorted(own[stem] for stem in own.keys() - other.keys())
        if alone:
            more = f" and {len(alone) - _SHOWN} more" if len(alone) > _SHOWN else ""
            near = nearest(Path(alone[0]).stem, [Path(name).name for name in other.keys() - own.keys()])
            said.append(f"{', '.join(alone[:_SHOWN])}{more} of {len(own)} have no {word} in {there}{near}")
    if said:
        raise UserError(f"{root}: {'; '.join(said)}. The pictures of a pair are named alike, whatever their endings")


def _rows(file: Path, wanted: Sequence[str]) -> tuple[Path, dict[str, str]]:
    rows = csv.rows_of(file)
    _, header = next(rows, (1, []))
    header = [name.strip() for name in header]
    for name in wanted:
        if header.count(name) != 1:
            has = "; it has " + ", ".join(header) if any(header) else "; it has no header"
            raise UserError(f"{file}, row 1: {'no' if name not in header else 'more than one'} column '{name}'{has}")
    places = [header.index(name) for name in wanted]
    files = csv.Files(file)
    pairs: dict[str, str] = {}
    for row, values in rows:
        at = f"{file}, row {row}"
        if len(values) <= max(places):
            raise UserError(f"{at}: {len(values)} columns, the header has {len(header)}")
        texts = [values[place].strip() for place in places]
        for name, text in zip(wanted, texts, strict=True):
            if not text:
                raise UserError(f"{at}: '{name}' is empty: half of a pair is missing")
        first, second = (files.key(text, at) for text in texts)
        if first == second:
            raise UserError(f"{at}: '{first}' is a pair with itself")
        if pairs.setdefault(first, second) != second:
            raise UserError(f"{at}: '{first}' has another target than in an earlier row: {pairs[first]}, and {second} here")
    if not pairs:
        raise UserError(f"{file}: no rows")
    return file.parent, pairs
