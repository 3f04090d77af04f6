"""Where a reference looks, as a hint."""

from __future__ import annotations

import torch
from torch.nn import functional

from trainer.config.losses.attention import Config
from trainer.losses.base import Ground, Loss, Reference, Seen
from trainer.losses.probe import stages
from trainer.losses.taps import Taps, like, maps, pairs


def build(config: Config, ground: Ground, key: str) -> Loss:
    """The loss towards a teacher or the start. Raises UserError for layers that are not there."""
    reference = ground.references[config.of]
    found = pairs(config.layers, lambda: stages(ground, reference), f"{key}.layers")
    for own, other in found:
        ground.taps.watch(own, f"{key}.layers")
        reference.taps.watch(other, f"{key}.layers")
    return Attention(ground.taps, reference, found)


class Attention(Loss):
    """The squared distance of attention maps: the mean square over the channels at each position, at unit length over all
    positions (Zagoruyko and Komodakis 2017, equation 2, with the square of the norm); the mean over the pairs of layers.
    """

    def __init__(self, taps: Taps, reference: Reference, found: list[tuple[str, str]]) -> None:
        super().__init__()
        self._taps, self._other, self._pairs = taps, reference.taps, found

    def forward(self, seen: Seen) -> torch.Tensor:
        """[n]."""
        parts = []
        for own, other in self._pairs:
            value = maps(self._taps.of(own), own)
            wanted = like(maps(self._other.of(other), other), value)
            parts.append((_where(value) - _where(wanted)).square().sum(dim=1))
        return torch.stack(parts).mean(dim=0)


def _where(value: torch.Tensor) -> torch.Tensor:
    """The attention of maps [n, c, h, w]: [n, h * w] at unit length."""
    return functional.normalize(value.square().mean(dim=1).flatten(1), dim=1)
