"""Networks of a user's own for pictures of pictures: a trunk that sees, one that paints; and pictures to learn from."""

from __future__ import annotations

import random
from pathlib import Path

import torch
from PIL import Image
from torch import nn


def trunk(width: int = 8, channels: int = 3) -> nn.Module:
    """A classifier of five classes with BatchNorm and dropout, which make exactness hard."""
    return nn.Sequential(
        nn.Conv2d(channels, width, 3, padding=1, stride=2), nn.BatchNorm2d(width), nn.ReLU(), nn.Dropout(0.1),
        nn.Conv2d(width, 2 * width, 3, padding=1, stride=2), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten(),
        nn.Linear(2 * width, 5),
    )  # fmt: skip


class Painter(nn.Module):
    """Grey to colour at half the resolution: only even sizes."""

    def __init__(self) -> None:
        super().__init__()
        self.down, self.up = nn.Conv2d(1, 8, 3, padding=1, stride=2), nn.ConvTranspose2d(8, 3, 2, stride=2)

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        """[n, 3, h, w]."""
        made: torch.Tensor = self.up(self.down(images).relu())
        return made


def painter() -> nn.Module:
    """The factory."""
    return Painter()


def photographs(folder: Path, count: int, seed: int, size: int = 16) -> Path:
    """So many colour pictures: a rectangle on a ground, both of any colour."""
    folder.mkdir(parents=True, exist_ok=True)
    draw = random.Random(seed)

    def colour() -> tuple[int, ...]:
        return tuple(draw.randrange(256) for _ in range(3))

    for number in range(count):
        image = Image.new("RGB", (size, size), colour())
        image.paste(colour(), (2, 3, 9 + draw.randrange(5), 8 + draw.randrange(6)))
        image.save(folder / f"{number:03d}.png")
    return folder
