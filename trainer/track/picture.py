"""The confusion matrix as a picture."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from PIL.Image import Image

_NONE, _ALL = (247, 251, 255), (8, 48, 107)


def draw_confusion(matrix: list[list[int]], classes: list[str]) -> Image:
    """A heat map, rows the truth and columns the prediction, each row shaded by its share; names and counts up to 30 classes."""
    from PIL import Image as Images
    from PIL import ImageDraw, ImageFont

    n = len(matrix)
    named = n <= 30
    cell = 36 if named else max(2, 1080 // n)
    font = ImageFont.load_default(12)
    names = [name if len(name) <= 16 else name[:15] + "…" for name in classes]
    left = int(max(font.getlength(name) for name in names)) + 12 if named else 0
    image = Images.new("RGB", (left + n * cell, n * cell + 20), "white")
    draw = ImageDraw.Draw(image)
    for row, counts in enumerate(matrix):
        if named:
            draw.text((left - 6, row * cell + cell / 2), names[row], fill="black", font=font, anchor="rm")
        for column, count in enumerate(counts):
            share = count / max(1, sum(counts))
            colour = tuple(round(a + (b - a) * share) for a, b in zip(_NONE, _ALL, strict=True))
            x, y = left + column * cell, row * cell
            draw.rectangle((x, y, x + cell - 1, y + cell - 1), fill=colour)
            if named and count:
                ink = "white" if share > 0.5 else "black"
                draw.text((x + cell / 2, y + cell / 2), str(count), fill=ink, font=font, anchor="mm")
    draw.text((left + n * cell / 2, n * cell + 10), "rows: truth, columns: predicted", fill="black", font=font, anchor="mm")
    return image
