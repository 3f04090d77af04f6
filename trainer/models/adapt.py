"""Fits a network's layers, and tensors of a checkpoint, to other classes, channels and resolutions."""

from __future__ import annotations

import math
from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import nn
from torch.nn import functional as F

from trainer.config import UserError
from trainer.config.adapt import Adapt
from trainer.models.channels import filters
from trainer.models.probe import width


@contextmanager
def seeded(seed: int) -> Iterator[None]:
    """torch's CPU generator begins at `seed` inside and goes on as if nothing had been drawn afterwards."""
    with torch.random.fork_rng(devices=[]):
        torch.default_generator.manual_seed(seed)
        yield


def _replace(network: nn.Module, name: str, layer: nn.Module) -> None:
    parent, _, child = name.rpartition(".")
    setattr(network.get_submodule(parent), child, layer)


def new_head(network: nn.Module, name: str, classes: int) -> None:
    """Put a fresh layer of `classes` outputs in the place of an output layer: same inputs, bias only where there was one."""
    old = network.get_submodule(name)
    device, dtype = old.weight.device, old.weight.dtype
    bias = old.bias is not None
    layer: nn.Module
    if isinstance(old, nn.Linear):
        layer = nn.Linear(old.in_features, classes, bias=bias, device=device, dtype=dtype)
    else:
        assert isinstance(old, nn.Conv2d)
        if old.groups != 1:
            raise UserError(f"the output layer '{name}' is a grouped convolution and cannot be given other classes")
        layer = _conv(old, old.in_channels, classes)
    before = width(old)
    _replace(network, name, layer)
    for module in network.modules():  # some networks use the number in their forward pass
        if getattr(module, "num_classes", None) == before:
            setattr(module, "num_classes", classes)  # noqa: B010 (nn.Module types assigned attributes as tensors)


def _conv(old: nn.Conv2d, inputs: int, outputs: int) -> nn.Conv2d:
    return nn.Conv2d(
        inputs, outputs, old.kernel_size, old.stride, old.padding, old.dilation, old.groups, old.bias is not None,  # type: ignore[arg-type]
        old.padding_mode, device=old.weight.device, dtype=old.weight.dtype,
    )  # fmt: skip


def new_input(network: nn.Module, name: str, adapt: Adapt, *, pretrained: bool) -> None:
    """Let the first convolution take the channels of the run file.

    Pretrained filters are carried over by `filters`. Random ones are drawn anew, normal with the deviation of the old
    filters, corrected so that the sum over the channels varies as before.
    """
    old = network.get_submodule(name)
    assert isinstance(old, nn.Conv2d)
    if old.groups != 1:
        raise UserError(f"the first layer '{name}' is a grouped convolution; its {old.in_channels} channels cannot be changed")
    layer = _conv(old, adapt.in_channels, old.out_channels)
    with torch.no_grad():
        if pretrained:
            layer.weight.copy_(filters(old.weight, adapt)[0])
        elif not layer.weight.is_meta:
            layer.weight.normal_(std=float(old.weight.std()) * math.sqrt(old.in_channels / adapt.in_channels))
        if old.bias is not None and layer.bias is not None:
            layer.bias.copy_(old.bias)
    _replace(network, name, layer)


def inputs_of(weight: torch.Tensor, shape: torch.Size, adapt: Adapt) -> tuple[torch.Tensor, str | None] | None:
    """The weights of an input layer for the channels of the run file, and what was done; None where the shapes do not fit.

    Convolutions [out, old, h, w] become [out, channels, h, w]. Where a layer takes blocks of pixels (space to depth, or linear
    patch embeddings: [out, block * old, ...], the channel varying fastest) each pixel's weights are treated like that.
    """
    if weight.dim() != len(shape) or weight.dim() < 2 or shape[1] % adapt.in_channels:
        return None
    block = shape[1] // adapt.in_channels
    old, rest = weight.shape[1] // block, weight.shape[2:]
    if weight.shape[1] % block or weight.shape[0] != shape[0] or rest != shape[2:]:
        return None
    fitted, told = filters(weight.reshape(weight.shape[0] * block, old, -1, 1), adapt)
    return fitted.reshape(shape), told


def positions_of(table: torch.Tensor, shape: torch.Size) -> torch.Tensor | None:
    """A table of position embeddings [1, tokens, width], resampled to a square grid of another size; None where it is none.

    The grid is interpolated (bicubic, with anti-aliasing when it shrinks); a class token in front stays as it is (Dosovitskiy
    et al. 2021, section 3.2).
    """
    if table.dim() != 3 or len(shape) != 3 or table.shape[0] != 1 or table.shape[2] != shape[2]:
        return None
    for extra in (1, 0):
        old, new = math.isqrt(table.shape[1] - extra), math.isqrt(shape[1] - extra)
        if old * old + extra == table.shape[1] and new * new + extra == shape[1]:
            break
    else:
        return None
    grid = table[:, extra:].float().reshape(1, old, old, -1).permute(0, 3, 1, 2)
    grid = F.interpolate(grid, size=(new, new), mode="bicubic", antialias=True, align_corners=False)
    grid = grid.permute(0, 2, 3, 1).reshape(1, new * new, -1).to(table.dtype)
    return torch.cat([table[:, :extra], grid], dim=1)
