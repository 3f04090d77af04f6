"""A generator and a critic of residual blocks, told of classes: the built-in pair.

The blocks and the projection of the class are those of Miyato and Koyama (2018); latent and class enter every normalisation, as
in Brock, Donahue and Simonyan (2019). The generator normalises groups of channels of one image, not batches: what is made of a
latent depends on no other one, however a batch is cut over ranks and micro-batches. The critic has no normalisation.
"""

from __future__ import annotations

import math

import torch
from torch import nn
from torch.nn import functional

GROUPS, MOST = 8, 8  # groups of a normalisation; channels at the coarsest resolution, in those of the finest


def begun(network: nn.Module, slope: float) -> None:
    """Convolutions that keep the size of what goes through them (He et al. 2015), those of one pixel without a rectifier before
    them; `slope`: of the rectifiers below 0.
    """
    for layer in network.modules():
        if isinstance(layer, nn.Conv2d) and layer.bias is not None:
            nn.init.kaiming_normal_(layer.weight, a=1.0 if layer.kernel_size == (1, 1) else slope)
            nn.init.zeros_(layer.bias)


class ToldNorm(nn.Module):
    """Group normalisation with gain and bias that a condition [n, latent] says."""

    def __init__(self, channels: int, latent: int) -> None:
        super().__init__()
        self.norm = nn.GroupNorm(GROUPS, channels, affine=False)
        self.told = nn.Linear(latent, 2 * channels)

    def forward(self, images: torch.Tensor, condition: torch.Tensor) -> torch.Tensor:
        gain, bias = self.told(condition)[:, :, None, None].chunk(2, dim=1)
        found: torch.Tensor = self.norm(images) * (1 + gain) + bias
        return found


class Up(nn.Module):
    """A residual block of the generator that doubles the size."""

    def __init__(self, given: int, channels: int, latent: int) -> None:
        super().__init__()
        self.before, self.between = ToldNorm(given, latent), ToldNorm(channels, latent)
        self.first, self.second = nn.Conv2d(given, channels, 3, padding=1), nn.Conv2d(channels, channels, 3, padding=1)
        self.skip = nn.Conv2d(given, channels, 1)

    def forward(self, images: torch.Tensor, condition: torch.Tensor) -> torch.Tensor:
        found = functional.interpolate(functional.relu(self.before(images, condition)), scale_factor=2)
        found = self.second(functional.relu(self.between(self.first(found), condition)))
        made: torch.Tensor = found + functional.interpolate(self.skip(images), scale_factor=2)
        return made


class ResnetGenerator(nn.Module):
    """Images [n, channels, size, size] in [-1, 1] of latents [n, latent] and, with `classes`, their numbers [n].

    `width`: channels at full resolution; twice as many at each coarser, at most eight times. `size` is 4 to 7, doubled.
    """

    def __init__(self, channels: int, size: int, classes: int, latent: int = 64, width: int = 32) -> None:
        super().__init__()
        doublings = int(math.log2(size // 4))
        self.latent, self.start = latent, size // 2**doublings
        widths = [width * min(MOST, 2 ** (doublings - stage)) for stage in range(doublings + 1)]
        self.class_embedding = nn.Embedding(classes, latent) if classes else None
        self.from_latent = nn.Linear(latent, latent)
        self.begin = nn.Linear(latent, widths[0] * self.start**2)
        self.blocks = nn.ModuleList(Up(widths[stage], widths[stage + 1], latent) for stage in range(doublings))
        self.norm = nn.GroupNorm(GROUPS, widths[-1])
        self.to_image = nn.Conv2d(widths[-1], channels, 3, padding=1)
        begun(self, 0.0)
        nn.init.orthogonal_(self.from_latent.weight)

    def forward(self, latents: torch.Tensor, classes: torch.Tensor | None = None) -> torch.Tensor:
        condition = self.from_latent(latents)
        if self.class_embedding is not None:
            condition = condition + self.class_embedding(classes)
        images = self.begin(condition).unflatten(1, (-1, self.start, self.start))
        for block in self.blocks:
            images = block(images, condition)
        return torch.tanh(self.to_image(functional.relu(self.norm(images))))


class Down(nn.Module):
    """A residual block of the critic; `halves` the size."""

    def __init__(self, given: int, channels: int, *, halves: bool) -> None:
        super().__init__()
        self.first, self.second = nn.Conv2d(given, channels, 3, padding=1), nn.Conv2d(channels, channels, 3, padding=1)
        self.skip = nn.Conv2d(given, channels, 1)
        self.halves = halves

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        found = self.second(functional.leaky_relu(self.first(functional.leaky_relu(images, 0.2)), 0.2)) + self.skip(images)
        return functional.avg_pool2d(found, 2) if self.halves else found


class ResnetCritic(nn.Module):
    """How real images [n, channels, size, size] are, [n]; with `classes`, as ones of these, by projection: the number is that of
    the image's features plus their product with the row of the class (Miyato and Koyama 2018, equation 5).
    """

    def __init__(self, channels: int, size: int, classes: int, width: int = 32) -> None:
        super().__init__()
        halvings = int(math.log2(size // 4))
        widths = [width * min(MOST, 2**stage) for stage in range(halvings + 1)]
        self.from_image = nn.Conv2d(channels, widths[0], 3, padding=1)
        blocks = [Down(widths[stage], widths[stage + 1], halves=True) for stage in range(halvings)]
        self.blocks = nn.ModuleList([*blocks, Down(widths[-1], widths[-1], halves=False)])
        self.judge = nn.Linear(widths[-1], 1)
        self.class_embedding = nn.Embedding(classes, widths[-1]) if classes else None
        if self.class_embedding is not None:
            nn.init.normal_(self.class_embedding.weight, std=widths[-1] ** -0.5)
        begun(self, 0.2)

    def forward(self, images: torch.Tensor, classes: torch.Tensor | None = None) -> torch.Tensor:
        found = self.from_image(images)
        for block in self.blocks:
            found = block(found)
        features = functional.leaky_relu(found, 0.2).sum(dim=(2, 3))
        said: torch.Tensor = self.judge(features)[:, 0]
        return said if self.class_embedding is None else said + (self.class_embedding(classes) * features).sum(dim=1)
