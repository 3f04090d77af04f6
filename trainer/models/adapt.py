"""Fits a network's first layer, and the tensors of it in a checkpoint, to other channels; draws from a seed."""

from __future__ import annotations

import math
from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import nn

from trainer.config import UserError
from trainer.config.adapt import Adapt
from trainer.models.channels import filters


@contextmanager
def seeded(seed: int) -> Iterator[None]:
    """torch's CPU generator begins at `seed` inside and goes on as if nothing had been drawn afterwards."""
    with torch.random.fork_rng(devices=[]):
        torch.default_generator.manual_seed(seed)
        yield


def _replace(network: nn.Module, name: str, layer: nn.Module) -> None:
    parent, _, child = name.rpartition(".")
    setattr(network.get_submodule(parent), child, layer)


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


def inputs_beside(
    weight: torch.Tensor, shape: torch.Size, adapt: Adapt, old: int, *, had: bool, wanted: bool
) -> tuple[torch.Tensor, str | None] | None:
    """Weights of an input layer that takes a picture of `old` channels, and where it `had` that a source picture of as many
    behind it, for the channels of the run file, and where it is `wanted` a source picture; what was done. None as `inputs_of`.

    What is new for a source picture begins at zero, so that the network goes on as if it were not there.
    """
    if not had and not wanted:
        return inputs_of(weight, shape, adapt)
    before, after = old * (1 + had), adapt.in_channels * (1 + wanted)
    if weight.dim() != len(shape) or weight.dim() < 2 or weight.shape[1] % before or shape[1] % after:
        return None
    block = weight.shape[1] // before
    if shape[1] // after != block or weight.shape[0] != shape[0] or weight.shape[2:] != shape[2:]:
        return None
    parts = weight.reshape(weight.shape[0] * block, before, -1, 1)
    fitted, told = filters(parts[:, :old], adapt)
    notes = [told] if told else []
    if wanted:
        source = filters(parts[:, old:], adapt)[0] if had else torch.zeros_like(fitted)
        fitted = torch.cat([fitted, source], dim=1)
    if had != wanted:
        new = f"{adapt.in_channels} channels of a source picture begin at zero"
        notes.append(new if wanted else "no source picture any more")
    return fitted.reshape(shape), "; ".join(notes) or None
