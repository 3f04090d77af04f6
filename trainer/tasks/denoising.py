"""How well a generator takes noise out of images that it did not learn from, and what it makes of noise alone."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import torch
from torch import nn

from trainer.config.tasks.diffusion import Config
from trainer.tasks.base import Batch, Evaluation
from trainer.tasks.likeness import Likeness
from trainer.tasks.making import Making

if TYPE_CHECKING:
    from trainer.tasks.diffusion import Diffusion

QUARTERS = 4


class DenoisingMeasure(Making):
    """The loss over fixed noise, in all and by quarters of the time, images of fixed seeds, and how like the data they are."""

    def __init__(self, task: Diffusion, config: Config, device: torch.device, likeness: Likeness | None) -> None:
        super().__init__(task, config.samples, config.fidelity, likeness)
        self._task, self._config = task, config
        self._samples = torch.zeros(1, dtype=torch.int64, device=device)
        self._sums = torch.zeros(2, QUARTERS, dtype=torch.float64, device=device)  # of the losses, and how many

    def update(self, network: nn.Module, batch: Batch) -> None:
        """Add a batch."""
        self._samples += len(batch.labels)
        for output in self._task.measured(network, batch):
            losses = self._task.error(output).double()
            quarter = (output.at.share * QUARTERS).long().clamp_(max=QUARTERS - 1)
            self._sums[0].index_add_(0, quarter, losses)
            self._sums[1].index_add_(0, quarter, torch.ones_like(losses))

    def tensors(self) -> Sequence[torch.Tensor]:
        """What is to be summed over the ranks, in place."""
        return [self._samples, self._sums, *self.summed()]

    def result(self) -> Evaluation:
        """The mean loss; by quarters of the time, from little noise to much, in the details; and the distances from the data."""
        (sums, counts), samples = self._sums.cpu().tolist(), int(self._samples)
        quarters = [total / count if count else None for total, count in zip(sums, counts, strict=True)]
        details: dict[str, Any] = {
            "kind": "diffusion", "samples": samples, "draws": self._config.draws, "loss_by_time": quarters,
        }  # fmt: skip
        found, about = self.likeness()
        metrics = {"loss": sum(sums) / max(1.0, sum(counts))} | found
        return Evaluation(metrics, details | about, self.sheet())
