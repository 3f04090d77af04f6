"""Networks with a fault of the kind that a user's own network has."""

from __future__ import annotations

import os

import torch
from torch import nn


class Failing(nn.Module):
    """Fails in training at the fifth call on one rank."""

    def __init__(self, rank: int, kind: str) -> None:
        super().__init__()
        self.head = nn.Linear(64, 5)
        self._rank, self._kind = rank, kind
        self._calls = 0

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        if self.training:
            self._calls += 1
            if int(os.environ.get("RANK", "0")) == self._rank and self._calls == 5:
                raise {"value": ValueError("bad things"), "memory": MemoryError(), "exit": SystemExit(4)}[self._kind]
        y: torch.Tensor = self.head(x.flatten(1))
        return y


class Unused(nn.Module):
    """Holds a layer that nothing calls."""

    def __init__(self) -> None:
        super().__init__()
        self.head = nn.Linear(64, 5)
        self.spare = nn.Linear(3, 3)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        y: torch.Tensor = self.head(x.flatten(1))
        return y


def failing(rank: int, kind: str) -> nn.Module:
    """The factory of a run file."""
    return Failing(rank, kind)


def unused() -> nn.Module:
    """The factory of a run file."""
    return Unused()
