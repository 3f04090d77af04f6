"""A learning rate for each loss, which adapts: AdaTask."""

from __future__ import annotations

import torch

from trainer.config.balances.adatask import Config
from trainer.losses.balances.base import Balance, Scale


def build(config: Config, scale: Scale) -> Balance:
    """The losses count alike; their gradients are kept apart for the optimizer (`trainer.optim.adatask`)."""
    return Apart(scale)


class Apart(Balance):
    """The sum of the losses; beside it the gradient of each loss by itself, for an optimizer that keeps them apart.

    One more backward pass a loss.
    """

    def __init__(self, scale: Scale) -> None:
        super().__init__()
        self._scale = scale
        self._own: list[list[torch.Tensor | None]] | None = None  # [k][parameter]
        self.register_buffer("_ones", torch.ones(len(scale.names)), persistent=False)
        self.gradients: dict[torch.Tensor, list[torch.Tensor]] = {}  # by parameter [k], of the step that is to be taken

    @property
    def weights(self) -> torch.Tensor:
        """All 1: what is balanced is the size of the steps."""
        return self.get_buffer("_ones")

    def forward(self, losses: torch.Tensor) -> torch.Tensor:
        """[n]."""
        wanted = [p for _, p in self._scale.learning if p.requires_grad]
        found: list[list[torch.Tensor | None]] = []
        for loss in losses.unbind(dim=1):
            gradients: tuple[torch.Tensor | None, ...] = (None,) * len(wanted)
            if loss.requires_grad:
                gradients = torch.autograd.grad(loss.sum(), wanted, retain_graph=True, allow_unused=True)
            found.append(list(gradients))
        if self._own is None:
            self._own = found
        else:
            self._own = [[_added(a, b) for a, b in zip(*both, strict=True)] for both in zip(self._own, found, strict=True)]
        return losses.sum(dim=1)

    @torch.no_grad()
    def settle(self, samples: int, *, good: bool) -> None:
        """Sum the gradients over the ranks."""
        assert self._own is not None
        wanted = [p for _, p in self._scale.learning if p.requires_grad]
        rows = [
            torch.cat([(torch.zeros_like(p) if g is None else g).flatten() for p, g in zip(wanted, row, strict=True)])
            for row in self._own
        ]
        self._own = None
        every = self._scale.sum(torch.stack(rows)) / self._scale.global_batch
        sizes = [p.numel() for p in wanted]
        parts = [row.split(sizes) for row in every]
        self.gradients = {p: [part[i].view_as(p) for part in parts] for i, p in enumerate(wanted)}


def _added(a: torch.Tensor | None, b: torch.Tensor | None) -> torch.Tensor | None:
    if a is None or b is None:
        return b if a is None else a
    return a + b
