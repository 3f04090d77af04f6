"""What the balancing of losses is given, and what it answers."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import nn

from trainer.config import UserError, nearest
from trainer.config.amounts import Amount

Sum = Callable[[torch.Tensor], torch.Tensor]  # over the ranks


@dataclass
class Scale:
    """What the losses are to be balanced over.

    `names` [k]; `head`: the output modules; `learning`: the parameters that learn from the start, by name, in the order of the
    network; `global_batch` samples a step; `sum`: a tensor's sum over the ranks; `samples`: what an amount of training is in
    samples.
    """

    names: Sequence[str]
    learning: Sequence[tuple[str, nn.Parameter]]
    head: Sequence[str]
    global_batch: int
    sum: Sum
    samples: Callable[[Amount], int]


class Balance(nn.Module):
    """The weights of k losses. What it learns by the optimizer are its parameters, what it remembers its buffers.

    `forward(losses)` takes [n, k], already multiplied by `losses.weights`, and gives one value a sample, [n]. `weights` [k] are
    those of the step, for the record. `settle` comes once a step, when the gradients are there and before the optimizer moves.
    """

    def __call__(self, losses: torch.Tensor) -> torch.Tensor:
        """[n]."""
        total: torch.Tensor = super().__call__(losses)
        return total

    @property
    def weights(self) -> torch.Tensor:
        """[k]."""
        raise AttributeError(f"{type(self).__name__} has no weights")

    def settle(self, samples: int, *, good: bool) -> None:
        """A step of all ranks ends at these samples; `good`: its gradient is finite and will be taken."""


def shared(scale: Scale, layer: str | None) -> tuple[str, nn.Parameter]:
    """The weights of the shared layer at which gradients are compared. Raises UserError where the trunk does not learn."""
    key = "losses.balance.layer"
    trunk = [(n, p) for n, p in scale.learning if not any(n == h or n.startswith(f"{h}.") for h in scale.head) and p.dim() > 1]
    if layer is None:
        if not trunk:
            raise UserError(
                "losses.balance: gradients are compared at a layer of the trunk that learns from the start, and none "
                "does; choose another strategy, or balance: {kind: uncertainty}"
            )
        return trunk[-1]
    found = [(n, p) for n, p in trunk if n == layer or n.startswith(f"{layer}.")]
    if not found:
        known = [n.rpartition(".")[0] for n, _ in trunk]
        raise UserError(f"{key}: no layer '{layer}' of the trunk learns from the start{nearest(layer, known)}")
    return found[-1]
