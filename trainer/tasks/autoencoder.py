"""Autoencoders: pictures made again of the few numbers that a network says of them."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import nn

from trainer.config.pictures import Adversary
from trainer.config.targets import Facts
from trainer.config.tasks.autoencoder import Config
from trainer.spec import InputSpec, Reconstructor
from trainer.tasks import draws
from trainer.tasks.base import Batch
from trainer.tasks.pictures import Pictures

NOISE = 32  # the stream of the draws from the posteriors


def build(config: Config, facts: Facts) -> Autoencode:
    """The task; of the data it needs to know nothing."""
    return Autoencode(config)


@dataclass(frozen=True)
class Coded:
    """The pictures [n, c, h, w] of latents, and the normal distribution of these that the encoder said."""

    made: torch.Tensor
    mean: torch.Tensor
    logvar: torch.Tensor


class Autoencode(Pictures):
    """The input is the target; latents are drawn in training, by (seed, epoch, sample), and are the means in an evaluation."""

    def __init__(self, config: Config) -> None:
        super().__init__(config)
        self._channels, self._latents = 0, (0, 1)
        self.pairs = False

    @property
    def wanted(self) -> Reconstructor:
        """What the network has to be."""
        return Reconstructor()

    @property
    def channels(self) -> int:
        return self._channels

    def fit(self, spec: InputSpec, network: nn.Module, seed: int) -> None:
        super().fit(spec, network, seed)
        latents: Any = network.latents
        self._channels, self._latents = spec.in_channels, latents

    def shown(self, adversary: Adversary) -> bool:
        """Never: the input is what it should be."""
        return False

    def cut(self, images: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """The images, twice."""
        return images, images

    def run(self, module: nn.Module, batch: Any) -> Coded:
        """The pictures of latents that are drawn."""
        device = batch.images.device
        channels, factor = self._latents
        keys = draws.keys(self.seed, NOISE, batch.epochs.to(device), batch.indices.to(device))
        side = batch.images.shape[-1] // factor
        return Coded(*module(batch.images, draws.normal(keys, (channels, side, side))))

    def measured(self, network: nn.Module, batch: Batch) -> Coded:
        """The pictures of the likeliest latents."""
        return Coded(*network(batch.images))

    def made(self, output: Coded) -> torch.Tensor:
        return output.made

    @property
    def more_names(self) -> tuple[str, ...]:
        return ("kl", "latent", "latent_square")

    def more(self, output: Coded) -> dict[str, torch.Tensor]:
        """The divergence from the standard normal distribution (Kingma and Welling 2014, appendix B), its sum over the number of
        the picture's values, as a reconstruction's mean is; and mean and mean square of the latents.
        """
        mean, logvar = output.mean.float(), output.logvar.float()
        square = mean.square() + logvar.exp()
        values = output.made[0].numel()
        kl = 0.5 * (square - 1 - logvar).flatten(1).sum(dim=1) / values
        return {"kl": kl, "latent": mean.flatten(1).mean(dim=1), "latent_square": square.flatten(1).mean(dim=1)}
