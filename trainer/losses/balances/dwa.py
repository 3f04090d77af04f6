"""Weights by how fast the losses fall."""

from __future__ import annotations

import torch

from trainer.config.balances.dwa import Config
from trainer.losses.balances.base import Balance, Scale


def build(config: Config, scale: Scale) -> Balance:
    """All weights 1 for the first two intervals."""
    return DWA(config.temperature, scale.samples(config.every), scale)


class DWA(Balance):
    """k softmax(r / T) with r = mean loss of the last interval over that of the one before (Liu, Johns and Davison 2019,
    equation 7, whose interval is an epoch).
    """

    def __init__(self, temperature: float, every: int, scale: Scale) -> None:
        super().__init__()
        count = len(scale.names)
        self._temperature, self._every, self._scale = temperature, every, scale
        self._own = torch.zeros(count, dtype=torch.float64)  # of this step and rank; the buffers below are the same on all ranks
        self.register_buffer("_weights", torch.ones(count))
        # sums of the interval, means of the last one and of the one before, and how many steps and intervals they are of
        self.register_buffer("_sums", torch.zeros(count, dtype=torch.float64))
        self.register_buffer("_last", torch.zeros(count, dtype=torch.float64))
        self.register_buffer("_counts", torch.zeros(2, dtype=torch.int64))

    @property
    def weights(self) -> torch.Tensor:
        """Of this interval."""
        return self.get_buffer("_weights")

    def forward(self, losses: torch.Tensor) -> torch.Tensor:
        """[n]."""
        self._own = self._own.to(losses.device) + losses.detach().double().sum(dim=0)
        return (losses * self.weights).sum(dim=1)

    @torch.no_grad()
    def settle(self, samples: int, *, good: bool) -> None:
        """Add the step to its interval; at the end of one work the weights out."""
        own = self._scale.sum(self._own) / self._scale.global_batch
        self._own = torch.zeros_like(self._own)
        sums, last, counts = (self.get_buffer(name) for name in ("_sums", "_last", "_counts"))
        if good:
            sums += own
            counts[0] += 1
        if samples // self._every > (samples - self._scale.global_batch) // self._every and counts[0]:
            mean = sums / counts[0]
            if counts[1]:
                rates = mean / last.clamp(min=torch.finfo(torch.float64).tiny)
                self.weights.copy_(len(self._scale.names) * (rates / self._temperature).softmax(dim=0))
            last.copy_(mean)
            sums.zero_()
            counts[0] = 0
            counts[1] += 1
