"""A network with everything that makes exactness hard: BatchNorm, dropout, and faults to order."""

from __future__ import annotations

import os
import subprocess
import time

import torch
from torch import nn


class Small(nn.Module):
    """Convolution, normalisation, dropout, head; the loss turns to NaN at a given call on a given rank."""

    def __init__(
        self, classes: int, norm: bool, dropout: float, nan_rank: int, nan_at: int, nan_for: int, nan_in: bool, slow: float,
        slow_rank: int | None,
    ) -> None:  # fmt: skip
        super().__init__()
        self._slow = slow if slow_rank is None or int(os.environ.get("RANK", "0")) == slow_rank else 0.0
        self.trunk = nn.Sequential(
            nn.Conv2d(1, 8, 3, padding=1, bias=not norm), nn.BatchNorm2d(8) if norm else nn.Identity(), nn.ReLU(), nn.MaxPool2d(2)
        )
        self.drop = nn.Dropout(dropout)
        self.head = nn.Linear(8 * 16, classes)
        self.register_buffer("mask", torch.tensor([0.0, float("-inf")]))  # as attention masks are: not finite, and meant so
        self._nan = (nan_rank, nan_at, nan_at + nan_for)
        self._nan_in = nan_in
        self._calls = 0

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        nan = False
        if self.training:
            self._calls += 1
            time.sleep(self._slow)
            rank, start, end = self._nan
            nan = int(os.environ.get("RANK", "0")) == rank and start < self._calls <= end
        if nan and self._nan_in:
            x = x * float("nan")
        y: torch.Tensor = self.head(self.drop(self.trunk(x).flatten(1)))
        return y * float("nan") if nan else y


def small(
    classes: int = 5, norm: bool = True, dropout: float = 0.3, nan_rank: int = -1, nan_at: int = 0,
    nan_for: int = 1, nan_in: bool = False, slow: float = 0.0, slow_rank: int | None = None,
    helper: str = "",
) -> nn.Module:  # fmt: skip
    """The factory of a run file; `helper` is started in a shell, as a user's own tool beside the training would be."""
    if helper:
        subprocess.Popen(["bash", "-c", helper])
    return Small(classes, norm, dropout, nan_rank, nan_at, nan_for, nan_in, slow, slow_rank)


class Unit(nn.Module):
    """A residual unit."""

    def __init__(self, width: int, norm: bool) -> None:
        super().__init__()
        self.first, self.second = nn.Conv2d(width, width, 1), nn.Conv2d(width, width, 1)
        self.norm = nn.BatchNorm2d(width) if norm else nn.GroupNorm(2, width)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        y: torch.Tensor = x + self.second(torch.relu(self.norm(self.first(x))))
        return y


class Deep(nn.Module):
    """A stem, three units, dropout and a head: blocks to freeze and to let go."""

    def __init__(self, classes: int, dropout: float, norm: bool) -> None:
        super().__init__()
        self.stem = nn.Conv2d(1, 8, 3, padding=1)
        self.units = nn.Sequential(*[Unit(8, norm) for _ in range(3)])
        self.drop = nn.Dropout(dropout)
        self.head = nn.Linear(8, classes)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        y: torch.Tensor = self.head(self.drop(self.units(self.stem(x)).mean(dim=(2, 3))))
        return y


def deep(classes: int = 5, dropout: float = 0.2, norm: bool = True) -> nn.Module:
    """The factory of a run file; without dropout and BatchNorm the split over ranks changes nothing."""
    return Deep(classes, dropout, norm)
