"""The last blocks learn."""

from __future__ import annotations

from trainer.config.strategies.blocks import Config
from trainer.strategies.base import Graft, Learns


def choose(config: Config, graft: Graft) -> dict[str, Learns]:
    """The last blocks of the trunk, and what is new. Raises UserError for more blocks than there are."""
    decay = graft.decay(config.layer_decay)
    chosen = graft.last(config.last, "strategy.last")
    return {name: Learns(decay.get(name, 1.0)) for block in chosen for name in block.parameters} | graft.new()
