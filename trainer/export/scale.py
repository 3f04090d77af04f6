"""Puts the units of the data into a network that learnt standardised numbers, so that it answers in them by itself."""

from __future__ import annotations

import copy
from collections.abc import Sequence

import torch
from torch import nn

from trainer.config import UserError
from trainer.spec import InputSpec

_ROUNDING = 1e-5  # of 32-bit numbers, some of them in a row


@torch.no_grad()
def fold(network: nn.Module, head: Sequence[str], scale: torch.Tensor, spec: InputSpec) -> None:
    """Change the output layers below `head` in place, so that the network gives `scale[0] * logits + scale[1]`.

    `network`: on the CPU in eval mode. The change is checked with images by chance. Raises UserError when something between the
    output layers and the output is not linear, or the output layers cannot be found.
    """
    probe = torch.rand(2, spec.in_channels, spec.image_size, spec.image_size, generator=torch.Generator().manual_seed(0))
    before = network(probe).double()
    for name in head:
        layers = _layers(network.get_submodule(name))
        widths = [int(layer.weight.shape[0]) for _, layer in layers]
        if sum(widths) == scale.shape[1]:
            for (owner, layer), part in zip(layers, scale.split(widths, dim=1), strict=True):  # type: ignore[no-untyped-call]
                _scale(owner, layer, part)
    after = (network(probe).double() - scale[1]) / scale[0]
    allowed = _ROUNDING * (before.abs().amax() + 1 + (scale[1] / scale[0]).abs())
    if not bool(((after - before).abs() <= allowed).all()):
        raise UserError(
            "the numbers of this network cannot be brought into the units of the data by its output layer "
            f"({', '.join(head)}), since its answers are changed behind it; write standardize: false in the task, or in its "
            "heads that learn numbers"
        )


@torch.no_grad()
def foldable(network: nn.Module, head: Sequence[str], scale: torch.Tensor, spec: InputSpec) -> None:
    """Try it on a copy whose output layers give numbers of either sign, before anything is learnt. Raises UserError as `fold`."""
    copied = copy.deepcopy(network).cpu().eval()
    for sign in (1, -1):
        generator = torch.Generator().manual_seed(0)
        for name in head:
            for _, layer in _layers(copied.get_submodule(name)):
                for parameter in layer.parameters():
                    parameter.copy_(sign * torch.randn(parameter.shape, generator=generator))
        fold(copied, head, scale, spec)


def _layers(module: nn.Module) -> list[tuple[nn.Module, nn.Linear | nn.Conv2d]]:
    """The output layers of a head, each with the module it stands in: itself, its layer `out`, or those of heads side by side."""
    if isinstance(module, nn.Linear | nn.Conv2d):
        return [(module, module)]
    if isinstance(out := getattr(module, "out", None), nn.Linear | nn.Conv2d):
        return [(module, out)]
    return [found for part in module.children() for found in _layers(part)]


def _scale(owner: nn.Module, layer: nn.Linear | nn.Conv2d, scale: torch.Tensor) -> None:
    factor, shift = scale
    old = layer.bias if layer.bias is not None else torch.zeros(len(factor))
    layer.weight.copy_(layer.weight.double() * factor.view(-1, *[1] * (layer.weight.dim() - 1)))
    layer.bias = nn.Parameter((old.double() * factor + shift).to(layer.weight.dtype), requires_grad=False)
    arguments = getattr(owner, "arguments", None)
    if isinstance(arguments, dict) and "bias" in arguments:  # what an export makes it with again
        arguments["bias"] = True
