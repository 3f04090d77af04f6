"""Pictures of predictions: a contact sheet at each evaluation, single telling examples at the end."""

from __future__ import annotations

import csv
import math
import re
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch
from PIL import Image, ImageDraw

from trainer.answers import Teller

Fetch = Callable[[int], torch.Tensor]  # the sample's pixels as the network sees them: uint8 [c, h, w]
TILE, LINE = 128, 14
RIGHT, WRONG, PLAIN = (22, 128, 60), (190, 30, 45), (60, 60, 60)


def picture(pixels: torch.Tensor) -> Image.Image:
    """A uint8 [c, h, w] tensor as an image: grey for one channel, the first three channels otherwise."""
    if pixels.shape[0] < 3:
        return Image.fromarray(pixels[0].contiguous().numpy())
    return Image.fromarray(pixels[:3].permute(1, 2, 0).contiguous().numpy())


def choose(answers: Sequence[dict[str, Any]], count: int) -> list[dict[str, Any]]:
    """The same evenly spread samples at every evaluation."""
    if not answers or not count:
        return []
    stride = max(1, len(answers) // count)
    return list(answers[::stride][:count])


def contact_sheet(teller: Teller, answers: Sequence[dict[str, Any]], fetch: Fetch, path: Path) -> str:
    """Tiles with what was said of each sample (green: right, red: wrong, with the truth behind); returns a caption."""
    told = [teller.lines(answer) for answer in answers]
    columns = min(8, len(answers))
    rows = math.ceil(len(answers) / columns)
    high = TILE + LINE * max(2, *(len(lines) for lines in told)) + 2
    sheet = Image.new("RGB", (columns * TILE, rows * high), "white")
    draw = ImageDraw.Draw(sheet)
    for place, (answer, lines) in enumerate(zip(answers, told, strict=True)):
        x, y = place % columns * TILE, place // columns * high
        image = picture(fetch(answer["index"])).convert("RGB")
        filter_ = Image.Resampling.NEAREST if image.width < TILE // 2 else Image.Resampling.BILINEAR
        sheet.paste(image.resize((TILE - 4, TILE - 4), filter_), (x + 2, y + 2))
        for number, line in enumerate(lines):
            colour = PLAIN if line.right is None else RIGHT if line.right else WRONG
            draw.text((x + 4, y + TILE + LINE * number), _fitting(line.text, draw), fill=colour)
    path.parent.mkdir(parents=True, exist_ok=True)
    sheet.save(path)
    judged = [all(marks) for lines in told if (marks := [line.right for line in lines if line.right is not None])]
    return f"{sum(judged)} of {len(judged)} right" if judged else f"{len(answers)} samples"


def _fitting(text: str, draw: ImageDraw.ImageDraw) -> str:
    """As much of a text as a tile is wide."""
    if draw.textlength(text) <= TILE - 6:
        return text
    while draw.textlength(f"{text}…") > TILE - 6:
        text = text[:-1]
    return f"{text}…"


def examples(
    teller: Teller, answers: Sequence[dict[str, Any]], fetch: Fetch, folder: Path, count: int = 12
) -> list[dict[str, Any]]:
    """Save the most telling answers as single pictures below `folder`; returns their description."""
    (folder / "examples").mkdir(parents=True, exist_ok=True)
    for old in (folder / "examples").glob("*.png"):
        old.unlink()
    found = []
    places: dict[str, int] = {}
    for example in teller.examples(answers, count):
        place = places[example.group] = places.get(example.group, -1) + 1
        word = re.sub(r"[^a-z0-9]+", "-", example.group.lower()).strip("-")
        name = f"examples/{list(places).index(example.group):02d}-{word}-{place:02d}.png"
        picture(fetch(example.index)).save(folder / name)
        found.append(
            {
                "file": name, "group": example.group, "truth": example.truth, "predicted": example.predicted,
                "confidence": example.confidence, "correct": example.correct,
            }
        )  # fmt: skip
    return found


def table(teller: Teller, answers: Sequence[dict[str, Any]], keys: Sequence[str], path: Path) -> None:
    """What was said of each validation sample, as CSV."""
    with path.open("w", encoding="utf-8", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(["sample", *teller.columns()])
        for answer in answers:
            writer.writerow([keys[answer["index"]], *teller.cells(answer)])
