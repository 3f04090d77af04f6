"""First the head, then everything, as one run."""

from __future__ import annotations

from trainer.config.strategies.probe import Config
from trainer.strategies.base import Graft, Learns


def choose(config: Config, graft: Graft) -> dict[str, Learns]:
    """What is new from the start, the trunk when the probe is done."""
    decay, start = graft.decay(config.layer_decay), graft.samples(config.probe)
    trunk = {name: Learns(config.rate * decay.get(name, 1.0), start) for name, _ in graft.network.named_parameters()}
    return trunk | graft.new()
