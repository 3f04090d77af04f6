"""Every parameter learns."""

from __future__ import annotations

from trainer.config.strategies.full import Config
from trainer.strategies.base import Graft, Learns


def choose(config: Config, graft: Graft) -> dict[str, Learns]:
    """All floating-point parameters, also those that the network's author had frozen; the head at the full rate."""
    decay = graft.decay(config.layer_decay)
    return {name: Learns(decay.get(name, 1.0)) for name, _ in graft.network.named_parameters()} | graft.new()
