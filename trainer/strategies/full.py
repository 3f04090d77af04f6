"""Every parameter learns."""

from __future__ import annotations

from collections.abc import Sequence

from torch import nn

from trainer.config.base import Kind


def choose(config: Kind, network: nn.Module, head: Sequence[str], fresh: Sequence[str]) -> None:
    """Let all floating-point parameters learn, also those that the network's author had frozen."""
    for parameter in network.parameters():
        parameter.requires_grad_(parameter.is_floating_point())
