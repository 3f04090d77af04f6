"""A network with everything that makes exactness hard: BatchNorm, dropout, and faults to order."""

from __future__ import annotations

import os

import torch
from torch import nn


class Small(nn.Module):
    """Convolution, normalisation, dropout, head; the loss turns to NaN at a given call on a given rank."""

    def __init__(self, classes: int, norm: bool, dropout: float, nan_rank: int, nan_at: int, nan_for: int) -> None:
        super().__init__()
        self.trunk = nn.Sequential(
            nn.Conv2d(1, 8, 3, padding=1, bias=not norm), nn.BatchNorm2d(8) if norm else nn.Identity(), nn.ReLU(), nn.MaxPool2d(2)
        )
        self.drop = nn.Dropout(dropout)
        self.head = nn.Linear(8 * 16, classes)
        self._nan = (nan_rank, nan_at, nan_at + nan_for)
        self._calls = 0

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        y: torch.Tensor = self.head(self.drop(self.trunk(x).flatten(1)))
        if self.training:
            self._calls += 1
            rank, start, end = self._nan
            if int(os.environ.get("RANK", "0")) == rank and start < self._calls <= end:
                y = y * float("nan")
        return y


def small(
    classes: int = 5, norm: bool = True, dropout: float = 0.3, nan_rank: int = -1, nan_at: int = 0, nan_for: int = 1
) -> nn.Module:
    """The factory of a run file."""
    return Small(classes, norm, dropout, nan_rank, nan_at, nan_for)
