"""Only the head learns."""

from __future__ import annotations

from collections.abc import Sequence

from torch import nn

from trainer.config.base import Kind


def choose(config: Kind, network: nn.Module, head: Sequence[str], fresh: Sequence[str]) -> None:
    """Freeze everything but the output modules and what has no pretrained values.

    A first layer that was fitted to other channels by formula carries pretrained filters and stays frozen; one that was drawn
    anew learns.
    """
    chosen = {f"{name}.{inner}" for name in head for inner, _ in network.get_submodule(name).named_parameters()} | set(fresh)
    for name, parameter in network.named_parameters():
        parameter.requires_grad_(name in chosen and parameter.is_floating_point())
