"""What numbers cost: one value a sample."""

from __future__ import annotations

from typing import Literal

import torch
from torch.nn import functional

Kind = Literal["mse", "l1", "huber", "smooth_l1"]


class ValueLoss:
    """The mean over the values of a loss for each of them.

    mse: the squared error; l1: the absolute one; huber (Huber 1964): half the square up to `delta`, delta (|error| - delta / 2)
    beyond it; smooth_l1 (Girshick 2015): the same divided by delta. What is not known costs 0.
    """

    def __init__(self, kind: Kind, delta: float = 1.0) -> None:
        self._kind, self._delta = kind, delta

    def __call__(self, given: torch.Tensor, truth: torch.Tensor) -> torch.Tensor:
        """[n] from what the network gives and truth [n, values], NaN where it is not known; both in the same units."""
        given = given.float()
        known = ~truth.isnan()
        meant = torch.where(known, truth, given.detach())
        if self._kind == "mse":
            losses = functional.mse_loss(given, meant, reduction="none")
        elif self._kind == "l1":
            losses = functional.l1_loss(given, meant, reduction="none")
        elif self._kind == "huber":
            losses = functional.huber_loss(given, meant, reduction="none", delta=self._delta)
        else:
            losses = functional.smooth_l1_loss(given, meant, reduction="none", beta=self._delta)
        return torch.where(known, losses, 0.0).mean(dim=1)
