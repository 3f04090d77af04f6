"""Weights by the size of the gradients."""

from __future__ import annotations

import torch
from torch import nn

from trainer.config import UserError
from trainer.config.balances.gradnorm import Config
from trainer.losses.balances.base import Balance, Scale, shared

_LEAST = 1e-3  # of a weight: at 0 a loss would never come back


def build(config: Config, scale: Scale) -> Balance:
    """All weights 1 at first. Raises UserError where no shared layer learns."""
    return GradNorm(config, scale)


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


class GradNorm(Compared):
    """Chen et al. 2018: the weights w go down the gradient of sum |G - mean(G) r^alpha|, where G = |w dL/dW| at the weights W of
    the shared layer, and r is a loss over its first value, over the mean of that of all losses (equations 1 and 2, algorithm 1).
    They are then scaled to sum to their number.
    """

    def __init__(self, config: Config, scale: Scale) -> None:
        super().__init__(scale, *shared(scale, config.layer))
        self._alpha, self._rate = config.alpha, config.rate
        self.register_buffer("_first", torch.zeros(len(scale.names)))

    @torch.no_grad()
    def settle(self, samples: int, *, good: bool) -> None:
        """Move the weights by one step. Raises UserError for a loss that has no gradient at the layer."""
        norms, losses = self.collect()
        if not good or not bool((norms.isfinite() & losses.isfinite()).all()):
            return
        first, weights = self.get_buffer("_first"), self.weights
        if not bool(first.any()):
            for name, norm in zip(self._scale.names, norms.tolist(), strict=True):
                if norm == 0:
                    raise UserError(
                        f"losses.balance: gradnorm: the loss '{name}' has no gradient at '{self._name}'; name an earlier layer "
                        "as losses.balance.layer, or balance: {kind: uncertainty}"
                    )
            first.copy_(losses)
        speed = losses / first.clamp(min=1e-12)
        target = (weights * norms).mean() * (speed / speed.mean().clamp(min=1e-12)) ** self._alpha
        moved = weights - self._rate * torch.sign(weights * norms - target) * norms
        moved = moved.clamp(min=_LEAST)
        weights.copy_(moved * len(moved) / moved.sum())
