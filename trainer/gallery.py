"""Pictures of predictions: a contact sheet at each evaluation, single right and wrong examples at the end."""

from __future__ import annotations

import csv
import math
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch
from PIL import Image, ImageDraw

Fetch = Callable[[int], torch.Tensor]  # the sample's pixels as the network sees them: uint8 [c, h, w]
TILE, CAPTION = 128, 30
RIGHT, WRONG = (22, 128, 60), (190, 30, 45)


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


def contact_sheet(answers: Sequence[dict[str, Any]], classes: Sequence[str], fetch: Fetch, path: Path) -> None:
    """Tiles with what each sample was taken for (green: right, red: wrong, with the truth below)."""
    columns = min(8, len(answers))
    rows = math.ceil(len(answers) / columns)
    sheet = Image.new("RGB", (columns * TILE, rows * (TILE + CAPTION)), "white")
    draw = ImageDraw.Draw(sheet)
    for place, answer in enumerate(answers):
        x, y = place % columns * TILE, place // columns * (TILE + CAPTION)
        image = picture(fetch(answer["index"])).convert("RGB")
        filter_ = Image.Resampling.NEAREST if image.width < TILE // 2 else Image.Resampling.BILINEAR
        sheet.paste(image.resize((TILE - 4, TILE - 4), filter_), (x + 2, y + 2))
        right = answer["truth"] == answer["predicted"]
        text = f"{classes[answer['predicted']][:14]} {answer['confidence']:.0%}"
        draw.text((x + 4, y + TILE), text, fill=RIGHT if right else WRONG)
        if not right:
            draw.text((x + 4, y + TILE + 14), f"is {classes[answer['truth']][:17]}", fill=(60, 60, 60))
    path.parent.mkdir(parents=True, exist_ok=True)
    sheet.save(path)


def examples(
    answers: Sequence[dict[str, Any]], classes: Sequence[str], fetch: Fetch, folder: Path, count: int = 12
) -> list[dict[str, Any]]:
    """Save the most confident right and wrong answers as single pictures below `folder`; returns their description."""
    (folder / "examples").mkdir(parents=True, exist_ok=True)
    for old in (folder / "examples").glob("*.png"):
        old.unlink()
    found = []
    for correct in (True, False):
        group = [a for a in answers if (a["truth"] == a["predicted"]) is correct]
        # Spread over the classes: the best of each class before the second best of any.
        seen: dict[int, int] = {}
        ranked = []
        for answer in sorted(group, key=lambda a: (-a["confidence"], a["index"])):
            turn = seen[answer["truth"]] = seen.get(answer["truth"], 0) + 1
            ranked.append((turn, -answer["confidence"], answer["index"], answer))
        for place, (*_, answer) in enumerate(sorted(ranked, key=lambda r: r[:3])[:count]):
            name = f"examples/{'right' if correct else 'wrong'}-{place:02d}.png"
            picture(fetch(answer["index"])).save(folder / name)
            found.append(
                {
                    "file": name, "truth": classes[answer["truth"]], "predicted": classes[answer["predicted"]],
                    "confidence": answer["confidence"], "correct": correct,
                }
            )  # fmt: skip
    return found


def table(answers: Sequence[dict[str, Any]], classes: Sequence[str], keys: Sequence[str], path: Path) -> None:
    """What each validation sample was taken for, as CSV."""
    with path.open("w", encoding="utf-8", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(["sample", "truth", "predicted", "confidence"])
        for a in answers:
            writer.writerow([keys[a["index"]], classes[a["truth"]], classes[a["predicted"]], f"{a['confidence']:.6f}"])
