"""A network that makes pictures of pictures: a trunk that saw images until now, and a decoder of its maps (U-Net)."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import nn
from torch.nn import functional


def stage(given: int, width: int) -> nn.Sequential:
    """Two convolutions with group normalisation (Wu and He 2018), which knows no batch."""
    layers: list[nn.Module] = []
    for inputs in (given, width):
        layers += [nn.Conv2d(inputs, width, 3, padding=1), nn.GroupNorm(8, width), nn.SiLU()]
    return nn.Sequential(*layers)


class Decoder(nn.Module):
    """From maps of falling resolution to a picture of the size of the image: each step doubles the size and adds the trunk's
    maps of it (Ronneberger, Fischer and Brox 2015), at the end the image itself.

    `widths`: the channels of the maps, from fine to coarse; `image`: those of the image, `channels` those of the picture.
    """

    def __init__(self, widths: Sequence[int], image: int, channels: int, width: int) -> None:
        super().__init__()
        self.arguments = {"widths": list(widths), "image": image, "channels": channels, "width": width}
        sizes = [min(width * 2**level, 8 * width) for level in range(len(widths) + 1)]
        self.neck = nn.Conv2d(widths[-1], sizes[-1], 1)
        joined = [image, *widths[:-1]]  # from fine to coarse: what comes beside the maps from below
        self.stages = nn.ModuleList(
            stage(sizes[level + 1] + joined[level], sizes[level]) for level in reversed(range(len(widths)))
        )
        self.out = nn.Conv2d(width, channels, 3, padding=1)

    def forward(self, image: torch.Tensor, maps: Sequence[torch.Tensor]) -> torch.Tensor:
        """[n, channels, h, w]."""
        value: torch.Tensor = self.neck(maps[-1])
        for one, beside in zip(self.stages, [*reversed(maps[:-1]), image], strict=True):
            value = functional.interpolate(value, size=beside.shape[-2:], mode="nearest")
            value = one(torch.cat([value, beside], dim=1))
        made: torch.Tensor = self.out(value)
        return made


class Translating(nn.Module):
    """A trunk, of which the named modules give maps from fine to coarse, and a decoder."""

    def __init__(self, trunk: nn.Module, levels: Sequence[str], decoder: nn.Module) -> None:
        super().__init__()
        self.trunk, self.decoder, self.levels = trunk, decoder, tuple(levels)

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        """[n, channels, h, w]."""
        seen: dict[str, torch.Tensor] = {}

        def keep(name: str) -> Callable[[nn.Module, object, torch.Tensor], None]:
            def note(_module: nn.Module, _given: object, output: torch.Tensor) -> None:
                seen[name] = output

            return note

        hooks = [self.trunk.get_submodule(name).register_forward_hook(keep(name)) for name in self.levels]
        try:
            self.trunk(images)
        finally:
            for hook in hooks:
                hook.remove()
        made: torch.Tensor = self.decoder(images, [seen[name] for name in self.levels])
        return made


class Residual(nn.Module):
    """A network whose output is added to its input (Kim, Lee and Lee 2016, VDSR): it learns what is to be changed.

    `mean` and `std` are what the input was normalised with; it is added as a picture in [-1, 1], grey repeated, colours as luma
    where the output has one channel.
    """

    mean: torch.Tensor
    std: torch.Tensor

    def __init__(self, network: nn.Module, channels: int, mean: Sequence[float], std: Sequence[float]) -> None:
        super().__init__()
        self.network, self.channels = network, channels
        self.normalised(mean, std)

    def normalised(self, mean: Sequence[float], std: Sequence[float]) -> None:
        """The input is normalised with these."""
        for name, values in (("mean", mean), ("std", std)):
            self.register_buffer(name, torch.tensor(values)[:, None, None])

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        """[n, channels, h, w]."""
        plain = (images * self.std + self.mean) * 2 - 1
        if self.channels == 1 < plain.shape[1]:
            # ITU-R 601; written out, since exports take the source of this class
            plain = (plain * plain.new_tensor([0.299, 0.587, 0.114])[:, None, None]).sum(dim=1, keepdim=True)
        changed: torch.Tensor = self.network(images)
        return plain + changed


class Untimed(nn.Module):
    """A network of diffusers that takes noise out of images, called without noise: at time 0."""

    def __init__(self, network: nn.Module, channels: int) -> None:
        super().__init__()
        self.network, self.channels = network, channels

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        """[n, channels, h, w]."""
        times = torch.zeros(len(images), device=images.device)
        made: torch.Tensor = self.network(images, times, return_dict=False)[0]
        return made[:, : self.channels]
