"""Features of a reference as hints."""

from __future__ import annotations

import torch
from torch import nn
from torch.nn import functional

from trainer.config import UserError
from trainer.config.losses.features import Config
from trainer.losses.base import Ground, Loss, Reference, Seen
from trainer.losses.probe import last_blocks, widths
from trainer.losses.taps import Taps, like, maps, pairs


def build(config: Config, ground: Ground, key: str) -> Loss:
    """The loss towards a teacher or the start. Raises UserError for layers that are not there, or that do not fit."""
    reference = ground.references[config.of]
    found = pairs(config.layers, lambda: last_blocks(ground, reference), f"{key}.layers")
    for own, other in found:
        ground.taps.watch(own, f"{key}.layers")
        reference.taps.watch(other, f"{key}.layers")
    own_widths, other_widths = widths(ground, reference)
    project = config.project == "always" or (config.project == "auto" and config.of == "teacher")
    projections: dict[str, nn.Module] = {}
    for own, other in found:
        a, b = own_widths[own], other_widths[other]
        if project:
            projections[own] = nn.Conv2d(a, b, 1, bias=False)
        elif a != b:
            raise UserError(
                f"{key}: '{own}' has {a} channels and '{other}' of the reference {b}; leave project: never out, or pair others"
            )
    return Features(ground.taps, reference, found, projections, config.normalize)


class Features(Loss):
    """The mean squared distance of features, after a learned projection of the network's own to the reference's channels
    (Romero et al. 2015, equation 3, with a 1x1 convolution as the regressor); the mean over the pairs of layers.

    Without a projection and towards the start: the behaviour of the trunk is kept (Li et al. 2019, DELTA, equation 4, all
    filters weighted alike).
    """

    def __init__(
        self, taps: Taps, reference: Reference, found: list[tuple[str, str]], projections: dict[str, nn.Module], normalize: bool
    ) -> None:  # fmt: skip
        super().__init__()
        self._taps, self._other, self._pairs, self._normalize = taps, reference.taps, found, normalize
        # names of modules hold no dots
        self.projections = nn.ModuleDict({name.replace(".", "/"): module for name, module in projections.items()})

    def forward(self, seen: Seen) -> torch.Tensor:
        """[n]."""
        parts = []
        for own, other in self._pairs:
            value, wanted = maps(self._taps.of(own), own), maps(self._other.of(other), other)
            key = own.replace(".", "/")
            if key in self.projections:
                value = self.projections[key](value)
            wanted = like(wanted, value)
            if self._normalize:
                value, wanted = functional.normalize(value, dim=1), functional.normalize(wanted, dim=1)
            parts.append((value - wanted).square().mean(dim=(1, 2, 3)))
        return torch.stack(parts).mean(dim=0)
