"""Sheets of images that a generator made: PNG files that say how they are laid out. Torch-free."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

from PIL import Image, PngImagePlugin

GAP = 2  # pixels between images
_KEY = "graft"


@dataclass(frozen=True)
class Layout:
    """Images of `width` x `height` in rows of `columns`, with a word for each (empty: none)."""

    columns: int
    width: int
    height: int
    captions: tuple[str, ...]


def save(images: Sequence[Image.Image], captions: Sequence[str], columns: int, path: Path) -> None:
    """Lay images of one size side by side, in rows of so many, and write them with what they are."""
    layout = Layout(columns, images[0].width, images[0].height, tuple(captions))
    across, down = layout.width + GAP, layout.height + GAP
    sheet = Image.new("RGB", (columns * across - GAP, -(-len(images) // columns) * down - GAP), "white")
    for place, image in enumerate(images):
        sheet.paste(image, (place % columns * across, place // columns * down))
    about = PngImagePlugin.PngInfo()
    about.add_text(_KEY, json.dumps(asdict(layout)))
    path.parent.mkdir(parents=True, exist_ok=True)
    sheet.save(path, pnginfo=about)


def read(path: Path) -> tuple[Image.Image, Layout] | None:
    """A sheet and its layout; none for a file that is no sheet."""
    try:
        with Image.open(path) as image:
            image.load()
            said = json.loads(str(getattr(image, "text", {})[_KEY]))
            layout = Layout(int(said["columns"]), int(said["width"]), int(said["height"]), tuple(map(str, said["captions"])))
            return image.convert("RGB"), layout
    except (OSError, ValueError, KeyError, TypeError):
        return None


def strip(image: Image.Image, layout: Layout, most: int) -> Image.Image:
    """The images of the first rows, which are those of the first seeds, in one row of about so many."""
    across, down = layout.width + GAP, layout.height + GAP
    rows = max(1, min(most // layout.columns, len(layout.captions) // layout.columns))
    made = Image.new("RGB", (rows * layout.columns * across - GAP, layout.height), "white")
    for row in range(rows):
        made.paste(image.crop((0, row * down, image.width, row * down + layout.height)), (row * layout.columns * across, 0))
    return made
