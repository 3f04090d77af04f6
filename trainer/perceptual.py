"""The distance of two pictures by the features of a network that stays as it is."""

from __future__ import annotations

from typing import Any

import torch
from torch import nn

from trainer.config import UserError
from trainer.config.pictures import Perceptual as Config
from trainer.losses.taps import Taps, maps
from trainer.references import as_taken, block_names, seeing
from trainer.spec import InputSpec

_HALF = 0.5


class Perceptual:
    """The mean squared distance of features, the mean over layers (Johnson, Alahi and Fei-Fei 2016, equation 2).

    At each position the features have unit length, as for LPIPS (Zhang et al. 2018, equation 1, with all channels alike), so that
    no layer weighs by its scale.
    """

    def __init__(self, config: Config, channels: int, device: torch.device, *, load_weights: bool = True) -> None:
        built = seeing(config.features, "task.perceptual.features", device, load_weights=load_weights)
        self._spec, self._given = built.spec, built.spec.in_channels
        if self._given not in (channels, 3):
            raise UserError(
                f"task.perceptual.features: takes {self._given} channels, and the pictures have {channels}; write "
                f"features.adapt.in_channels: {channels}"
            )
        self.network: nn.Module = built.network
        self._taps = Taps(self.network, "the network of task.perceptual")
        blocks = block_names(self.network, built.head)
        for name in config.layers or blocks:
            self._taps.watch(name, "task.perceptual.layers")
        self._layers = list(config.layers) or self._stages(blocks, device)

    def _stages(self, blocks: list[str], device: torch.device) -> list[str]:
        """The last block of each resolution."""
        side = self._spec.image_size
        found: dict[int, str] = {}
        with torch.no_grad():
            seen = self._features(torch.zeros(1, self._given, side, side, device=device), [])
        for name in blocks:
            if name in seen and seen[name].dim() == 4:
                found[seen[name].shape[-1]] = name
        if not found:
            raise UserError("task.perceptual.features: no block of it gives maps; name layers as task.perceptual.layers")
        return list(found.values())

    def _features(self, images: torch.Tensor, layers: list[str]) -> dict[str, torch.Tensor]:
        with self._taps.listening():
            self.network(images)
            return {name: self._taps.of(name) for name in layers} if layers else dict(self._taps.seen)

    def __call__(self, made: torch.Tensor, target: torch.Tensor) -> torch.Tensor:
        """[n], with a gradient to what was made."""
        channels = made.shape[1]
        own = InputSpec(self._given, made.shape[-1], (_HALF,) * self._given, (_HALF,) * self._given)
        both: list[dict[str, torch.Tensor]] = []
        for images in (made, target):
            coloured = images.expand(-1, self._given, -1, -1) if channels < self._given else images
            both.append(self._features(as_taken(coloured, own, self._spec), self._layers))
        parts: list[Any] = []
        for name in self._layers:
            one, other = (nn.functional.normalize(maps(values[name], name), dim=1) for values in both)
            parts.append((one - other).square().sum(dim=1).flatten(1).mean(dim=1))
        return torch.stack(parts).mean(dim=0)
