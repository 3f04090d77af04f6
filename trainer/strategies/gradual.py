"""The trunk begins to learn block by block."""

from __future__ import annotations

from trainer.config.strategies.gradual import Config
from trainer.strategies.base import Graft, Learns


def choose(config: Config, graft: Graft) -> dict[str, Learns]:
    """What is new from the start, then `blocks` more after every `every`. Raises UserError for more blocks than there are."""
    decay = graft.decay(config.layer_decay)
    chosen = graft.last(config.limit, "strategy.limit") if config.limit is not None else graft.blocks
    every = graft.samples(config.every)
    found = {
        name: Learns(decay.get(name, 1.0), every * (1 + number // config.blocks))
        for number, block in enumerate(reversed(chosen))
        for name in block.parameters
    }
    return found | graft.new()
