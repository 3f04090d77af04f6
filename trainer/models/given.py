"""A network just as it came: nothing of it may be drawn by chance."""

from __future__ import annotations

from torch import equal

from trainer.config.model import Model
from trainer.models.base import Built
from trainer.models.build import Norm, build_model
from trainer.spec import Output


def as_given(config: Model, normalize: Norm, outputs: tuple[Output, ...]) -> tuple[Built, list[str]]:
    """The network with its weights, and the names of the tensors that did not come with them: those that depend on the seed."""
    one, other = (build_model(config, normalize, outputs, seed) for seed in (1, 2))
    values = other.network.state_dict()
    return one, [name for name, value in one.network.state_dict().items() if not equal(value, values[name])]
