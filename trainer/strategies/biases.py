"""The biases learn."""

from __future__ import annotations

from trainer.config import UserError
from trainer.config.strategies.biases import Config
from trainer.strategies.base import Graft, Learns


def choose(config: Config, graft: Graft) -> dict[str, Learns]:
    """All biases, and what is new. Raises UserError where the trunk has none."""
    new = graft.new()
    names = [name for name, _ in graft.network.named_parameters() if name.rpartition(".")[2].endswith("bias")]
    if not any(name not in new for name in names):
        raise UserError("strategy.kind: biases, and no layer of the trunk has a bias; try head or norms")
    return dict.fromkeys(names, Learns()) | new
