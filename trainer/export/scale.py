"""Puts the units of the data into a network that learnt standardised numbers, so that it answers in them by itself."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import nn

from trainer.config import UserError
from trainer.spec import InputSpec

_TOLERANCE = 1e-4  # of the largest answer: two roundings of 32-bit numbers


@torch.no_grad()
def fold(network: nn.Module, head: Sequence[str], scale: torch.Tensor, spec: InputSpec) -> None:
    """Change the output layers `head` in place, so that the network gives `scale[0] * logits + scale[1]`.

    `network`: on the CPU in eval mode. The change is checked with an image by chance. Raises UserError when something between the
    output layer and the output is not linear, or no output layer can be found.
    """
    probe = torch.rand(2, spec.in_channels, spec.image_size, spec.image_size, generator=torch.Generator().manual_seed(0))
    wanted = network(probe).double() * scale[0] + scale[1]
    layers = [layer for name in head if _width(layer := network.get_submodule(name)) == scale.shape[1]]
    for layer in layers:
        weight, bias = layer.get_parameter("weight"), layer.bias
        old = torch.zeros(scale.shape[1]) if bias is None else layer.get_parameter("bias")
        weight.copy_(weight.double() * scale[0].view(-1, *[1] * (weight.dim() - 1)))
        layer.bias = nn.Parameter((old.double() * scale[0] + scale[1]).to(weight.dtype))
    difference = float((network(probe).double() - wanted).abs().max())
    if not layers or not difference <= _TOLERANCE * max(1.0, float(wanted.abs().max())):
        raise UserError(
            "the numbers of this network cannot be brought into the units of the data by its output layer "
            f"({', '.join(head)}), since its answers are changed behind it; train it with task.standardize: false to export it"
        )


def _width(layer: nn.Module) -> int:
    return int(layer.weight.shape[0]) if isinstance(layer, nn.Linear | nn.Conv2d) else 0
