"""Only the head learns."""

from __future__ import annotations

from trainer.config.strategies.head import Config
from trainer.strategies.base import Graft, Learns


def choose(config: Config, graft: Graft) -> dict[str, Learns]:
    """The output modules and what has no pretrained values.

    A first layer that was fitted to other channels by formula carries pretrained filters and stays frozen; one that was drawn
    anew learns.
    """
    return graft.new()
