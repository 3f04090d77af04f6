"""A network that says of every patch of a picture whether it is real: the critic of an adversarial loss."""

from __future__ import annotations

import torch
from torch import nn

from trainer.config import UserError
from trainer.models.adapt import seeded
from trainer.spec import Critic


class Patches(nn.Module):
    """PatchGAN (Isola, Zhu, Zhou and Efros 2017, section 3.2.2): strided convolutions, then a number for each patch.

    With group normalisation, so that what is said of a picture depends on no other one.
    """

    def __init__(self, channels: int, width: int, layers: int) -> None:
        super().__init__()
        given, stages = channels, []
        for layer in range(layers):
            made = width * min(2**layer, 8)
            norm: list[nn.Module] = [nn.GroupNorm(8, made)] if layer else []
            stages.append(nn.Sequential(nn.Conv2d(given, made, 4, 2, 1), *norm, nn.LeakyReLU(0.2)))
            given = made
        self.stages = nn.Sequential(*stages)
        self.head = nn.Sequential(
            nn.Conv2d(given, given, 3, padding=1), nn.GroupNorm(8, given), nn.LeakyReLU(0.2), nn.Conv2d(given, 1, 3, padding=1)
        )

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        """[n, 1, patches, patches]."""
        said: torch.Tensor = self.head(self.stages(images))
        return said


class Several(nn.ModuleList):
    """Critics of several kinds of pictures, called with a batch of each kind."""

    def forward(self, *pictures: torch.Tensor) -> tuple[torch.Tensor, ...]:
        """What each says, [n, 1, patches, patches]."""
        return tuple(critic(images) for critic, images in zip(self, pictures, strict=True))


def build_critic(wanted: Critic, size: int, seed: int) -> nn.Module:
    """The network for pictures of a size, drawn from `seed` alone. Raises UserError where they are too small for its layers."""
    most = size.bit_length() - 1
    if wanted.layers > most:
        raise UserError(
            f"task.adversary.layers is {wanted.layers}, and {size} pixels are halved {most} times at most; write less"
        )
    with seeded(seed):
        return Patches(wanted.channels, wanted.width, wanted.layers)
