"""The normalisation layers learn."""

from __future__ import annotations

from trainer.config import UserError
from trainer.config.strategies.norms import Config
from trainer.strategies.base import Graft, Learns
from trainer.strategies.kinds import is_norm


def choose(config: Config, graft: Graft) -> dict[str, Learns]:
    """The parameters of normalisation layers, and what is new. Raises UserError where there are none."""
    found = {
        f"{name}.{inner}" if name else inner: Learns()
        for name, module in graft.network.named_modules()
        if is_norm(module)
        for inner, _ in module.named_parameters(recurse=False)
    }
    if not found:
        raise UserError("strategy.kind: norms, and the network has no normalisation layer with parameters; try head or biases")
    return found | graft.new()
