"""Weights by learned uncertainty."""

from __future__ import annotations

import torch
from torch import nn

from trainer.config.balances.uncertainty import Config
from trainer.losses.balances.base import Balance, Scale


def build(config: Config, scale: Scale) -> Balance:
    """A variance a loss, which begins at 1."""
    return Uncertainty(len(scale.names))


class Uncertainty(Balance):
    """sum of exp(-s) L + s / 2 over the losses, s = log variance (Kendall, Gal and Cipolla 2018, equations 7 and 10).

    The paper halves L of a regression; that is the same with another variance, and moves no weight where it comes to rest: there
    exp(-s) = 1 / (2 L).
    """

    def __init__(self, count: int) -> None:
        super().__init__()
        self.log_variance = nn.Parameter(torch.zeros(count))

    @property
    def weights(self) -> torch.Tensor:
        """exp(-s)."""
        return (-self.log_variance).exp()

    def forward(self, losses: torch.Tensor) -> torch.Tensor:
        """[n]."""
        return (losses * self.weights + self.log_variance / 2).sum(dim=1)
