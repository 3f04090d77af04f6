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


class Compared(Balance):
    """Weights that follow from the gradients of each loss at the weights of one layer, over all samples of a step."""

    def __init__(self, scale: Scale, name: str, weight: nn.Parameter) -> None:
        super().__init__()
        self._scale, self._name, self._at = scale, name, [weight]  # in a list: it is the network's
        self._gradients: torch.Tensor | None = None  # [k, numbers of the layer], of this step and rank
        self._own: torch.Tensor | None = None
        self.register_buffer("_weights", torch.ones(len(scale.names)))

    @property
    def weights(self) -> torch.Tensor:
        """Of this step."""
        return self.get_buffer("_weights")

    def forward(self, losses: torch.Tensor) -> torch.Tensor:
        """[n]."""
        (weight,) = self._at
        found = []
        for loss in losses.unbind(dim=1):
            gradient = None
            if loss.requires_grad:
                (gradient,) = torch.autograd.grad(loss.sum(), [weight], retain_graph=True, allow_unused=True)
            found.append(torch.zeros_like(weight).flatten() if gradient is None else gradient.flatten())
        own, gradients = losses.detach().sum(dim=0), torch.stack(found)
        self._own = own if self._own is None else self._own + own
        self._gradients = gradients if self._gradients is None else self._gradients + gradients
        return (losses * self.weights).sum(dim=1)

    def collect(self) -> tuple[torch.Tensor, torch.Tensor]:
        """The norms of the gradients and the losses, [k] each, of this step over all ranks; the next step begins anew."""
        assert self._gradients is not None
        assert self._own is not None
        batch = self._scale.global_batch
        norms = (self._scale.sum(self._gradients) / batch).norm(dim=1)
        losses = (self._scale.sum(self._own) / batch).float()
        self._gradients = self._own = None
        return norms, losses

    def reached(self, norms: torch.Tensor) -> None:
        """Raises UserError for a loss that has no gradient at the layer: there is nothing to weigh it by."""
        for name, norm in zip(self._scale.names, norms.tolist(), strict=True):
            if norm == 0:
                raise UserError(
                    f"losses.balance: the loss '{name}' has no gradient at '{self._name}'; name a layer that all losses go "
                    "through as losses.balance.layer, or leave the balance out and write losses.weights"
                )


def shared(scale: Scale, layer: str | None, *, heads: bool) -> tuple[str, nn.Parameter]:
    """The weights of the layer at which gradients are compared: the named one, else the last; `heads`: that may be an output
    module, and is one where one learns. Raises UserError where none of these learns from the start.
    """

    def within(name: str, module: str) -> bool:
        return name == module or name.startswith(f"{module}.")

    matrices = [(name, p) for name, p in scale.learning if p.dim() > 1]
    last = [(name, p) for name, p in matrices if any(within(name, head) for head in scale.head)]
    known = matrices if heads else [item for item in matrices if item not in last]
    of = "" if heads else " of the trunk"
    if layer is None:
        if not known:
            raise UserError(
                f"losses.balance: gradients are compared at a layer{of} that learns from the start, and none does; choose "
                "another strategy, or balance: {kind: uncertainty}"
            )
        return (last or known)[-1] if heads else known[-1]
    found = [(name, p) for name, p in known if within(name, layer)]
    if not found:
        names = [name.rpartition(".")[0] for name, _ in known]
        raise UserError(f"losses.balance.layer: no layer '{layer}'{of} learns from the start{nearest(layer, names)}")
    return found[-1]
