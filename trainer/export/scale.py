"""Puts the units of the data into a network that learnt standardised numbers, so that it answers in them by itself."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import nn

from trainer.config import UserError
from trainer.spec import InputSpec

_TOLERANCE = 1e-4  # of the largest answer: some roundings of 32-bit numbers


@torch.no_grad()
def fold(network: nn.Module, head: Sequence[str], scale: torch.Tensor, spec: InputSpec) -> None:
    """Change the output layers below `head` in place, so that the network gives `scale[0] * logits + scale[1]`.

    `network`: on the CPU in eval mode. The change is checked with images by chance. Raises UserError when something between the
    output layers and the output is not linear, or the output layers cannot be found.
    """
    probe = torch.rand(2, spec.in_channels, spec.image_size, spec.image_size, generator=torch.Generator().manual_seed(0))
    wanted = network(probe).double() * scale[0] + scale[1]
    for name in head:
        layers = _layers(network.get_submodule(name))
        widths = [int(layer.weight.shape[0]) for _, layer in layers]
        if sum(widths) == scale.shape[1]:
            for (owner, layer), part in zip(layers, scale.split(widths, dim=1), strict=True):  # type: ignore[no-untyped-call]
                _scale(owner, layer, part)
    difference = float((network(probe).double() - wanted).abs().max())
    if not difference <= _TOLERANCE * max(1.0, float(wanted.abs().max())):
        raise UserError(
            "the numbers of this network cannot be brought into the units of the data by its output layer "
            f"({', '.join(head)}), since its answers are changed behind it; train it with task.standardize: false to export it"
        )


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
