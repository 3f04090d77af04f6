"""Weights that make the gradients alike."""

from __future__ import annotations

import torch

from trainer.config.balances.match import Config
from trainer.losses.balances.base import Balance, Compared, Scale, shared

_SMALL = 1e-8


def build(config: Config, scale: Scale) -> Balance:
    """All weights 1 at first. Raises UserError for a layer that does not learn."""
    return Match(config, scale)


class Match(Compared):
    """The weight of a loss is |dL1/dW| / |dL/dW|, where L1 is the first loss and W are the weights of the layer, of the last
    step: Esser, Rombach and Ommer 2021, equation 7, with the gradient of all ranks and micro-batches.
    """

    def __init__(self, config: Config, scale: Scale) -> None:
        super().__init__(scale, *shared(scale, config.layer, heads=True))
        self._most = config.most

    @torch.no_grad()
    def settle(self, samples: int, *, good: bool) -> None:
        """Work out the weights of the next step; a loss that has no gradient in this one keeps its own. Raises UserError for one
        that has none at first.
        """
        norms, _ = self.collect()
        if not good or not bool(norms.isfinite().all()):
            return
        weights = self.weights
        if bool((weights == 1).all()):
            self.reached(norms)
        found = (norms[0] / (norms + _SMALL)).clamp(max=self._most)
        known = (norms > 0) & (norms[0] > 0)
        weights.copy_(torch.where(known, found, weights))
        weights[0] = 1.0
