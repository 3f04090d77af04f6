"""A CSV of small grey pictures of which several things are known, and not all of each."""

from __future__ import annotations

import csv
import random
from pathlib import Path

from PIL import Image

KINDS = ("bar", "dot", "ring")
TAGS = ("bright", "framed", "tilted")


def pictures(folder: Path, count: int = 96) -> Path:
    """`rows.csv` in a folder, with its pictures: columns image, kind, tags, bright, framed, tilted, size, shade; returns it.

    Of every ninth the kind is empty, of every seventh the size, of every fifth the column `framed`.
    """
    folder.mkdir(parents=True, exist_ok=True)
    draw = random.Random(0)
    rows: list[list[object]] = []
    for number in range(count):
        kind, size = KINDS[number % 3], draw.randint(1, 3)
        has = {tag: draw.random() < share for tag, share in zip(TAGS, (0.5, 0.3, 0.4), strict=True)}
        shade = 120 + 100 * has["bright"] + draw.randint(0, 20)
        image = Image.new("L", (8, 8), 10 * has["tilted"])
        for x in range(8):
            for y in range(8):
                far = max(abs(x - 3.5), abs(y - 3.5))
                on = (
                    far < size + 0.6
                    if kind == "dot"
                    else size - 0.4 < far < size + 0.6
                    if kind == "ring"
                    else abs(x - 3.5) < size
                )
                if on or (has["framed"] and far > 3):
                    image.putpixel((x, y), shade)
        image.save(folder / f"{number:03d}.png")
        rows.append([
            f"{number:03d}.png", "" if number % 9 == 8 else kind, "|".join(tag for tag in TAGS if has[tag]),
            *(("" if tag == "framed" and number % 5 == 4 else int(has[tag])) for tag in TAGS),
            "" if number % 7 == 6 else 10.0 + 2.5 * size, shade / 10,
        ])  # fmt: skip
    with (folder / "rows.csv").open("w", newline="", encoding="utf-8") as file:
        csv.writer(file).writerows([["image", "kind", "tags", *TAGS, "size", "shade"], *rows])
    return folder / "rows.csv"
