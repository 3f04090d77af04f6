"""Weights by the size of the gradients."""

from __future__ import annotations

import torch

from trainer.config.balances.gradnorm import Config
from trainer.losses.balances.base import Balance, Compared, Scale, shared

_LEAST = 1e-3  # of a weight: at 0 a loss would never come back


def build(config: Config, scale: Scale) -> Balance:
    """All weights 1 at first. Raises UserError where no shared layer learns."""
    return GradNorm(config, scale)


class GradNorm(Compared):
    """Chen et al. 2018: the weights w go down the gradient of sum |G - mean(G) r^alpha|, where G = |w dL/dW| at the weights W of
    the shared layer, and r is a loss over its first value, over the mean of that of all losses (equations 1 and 2, algorithm 1).
    They are then scaled to sum to their number.
    """

    def __init__(self, config: Config, scale: Scale) -> None:
        super().__init__(scale, *shared(scale, config.layer, heads=False))
        self._alpha, self._rate = config.alpha, config.rate
        self.register_buffer("_first", torch.zeros(len(scale.names)))

    @torch.no_grad()
    def settle(self, samples: int, *, good: bool) -> None:
        """Move the weights by one step. Raises UserError for a loss that has no gradient at the layer."""
        norms, losses = self.collect()
        if not good or not bool((norms.isfinite() & losses.isfinite()).all()):
            return
        first, weights = self.get_buffer("_first"), self.weights
        if not bool(first.any()):
            self.reached(norms)
            first.copy_(losses)
        speed = losses / first.clamp(min=1e-12)
        target = (weights * norms).mean() * (speed / speed.mean().clamp(min=1e-12)) ** self._alpha
        moved = weights - self._rate * torch.sign(weights * norms - target) * norms
        moved = moved.clamp(min=_LEAST)
        weights.copy_(moved * len(moved) / moved.sum())
