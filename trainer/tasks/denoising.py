"""How well a generator takes noise out of images that it did not learn from, and what it makes of noise alone."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import TYPE_CHECKING

import torch
from torch import nn

from trainer.config.tasks.diffusion import Config
from trainer.tasks.base import Batch, Evaluation, Sheet

if TYPE_CHECKING:
    from trainer.tasks.diffusion import Diffusion

QUARTERS = 4
COLUMNS = 10


class DenoisingMeasure:
    """The loss over fixed noise, in all and by quarters of the time, and images of fixed seeds."""

    def __init__(self, task: Diffusion, config: Config, classes: Sequence[str], device: torch.device) -> None:
        self._task, self._config, self._classes = task, config, tuple(classes)
        self._samples = torch.zeros(1, dtype=torch.int64, device=device)
        self._sums = torch.zeros(2, QUARTERS, dtype=torch.float64, device=device)  # of the losses, and how many
        self._made: torch.Tensor | None = None

    def update(self, network: nn.Module, batch: Batch) -> None:
        """Add a batch."""
        self._samples += len(batch.labels)
        for output in self._task.measured(network, batch):
            losses = self._task.error(output).double()
            quarter = (output.at.share * QUARTERS).long().clamp_(max=QUARTERS - 1)
            self._sums[0].index_add_(0, quarter, losses)
            self._sums[1].index_add_(0, quarter, torch.ones_like(losses))

    def add(self, logits: torch.Tensor, batch: Batch) -> None:
        """Never asked for: what a network says of noise is not kept."""
        raise TypeError("the loss of a generator does not follow from logits")

    def finish(self, network: nn.Module, rank: int, world: int, at: Callable[[str], None]) -> None:
        """Make this rank's share of the images: always the same ones at once, so that the number of ranks changes none."""
        channels, size = self._task.beside.image
        chosen = list(self._chosen())
        made = torch.zeros(len(chosen), channels, size, size, dtype=torch.uint8)
        batch, first = self._config.samples.batch, self._config.samples.seed
        plan = self._task.plan()
        for start in range(rank * batch, len(chosen), world * batch):
            part = chosen[start : start + batch]
            seeds = [first + start + place for place in range(len(part))]
            made[start : start + batch] = self._task.sample(network, seeds, part, plan, lambda: at("evaluate"))
        self._made = made

    def _chosen(self) -> Iterator[int]:
        """The class of each image: one of each in a row."""
        columns, count = self._columns, self._config.samples.count
        for place in range(max(1, count // columns) * columns if count else 0):
            yield place % max(1, len(self._classes)) if self._classes else 0

    @property
    def _columns(self) -> int:
        return min(len(self._classes) or 8, COLUMNS)

    def tensors(self) -> Sequence[torch.Tensor]:
        """What is to be summed over the ranks, in place."""
        return [self._samples, self._sums, *([] if self._made is None else [self._made])]

    def result(self) -> Evaluation:
        """The mean loss; by quarters of the time, from little noise to much, in the details."""
        (sums, counts), samples = self._sums.cpu().tolist(), int(self._samples)
        quarters = [total / count if count else None for total, count in zip(sums, counts, strict=True)]
        details = {"kind": "diffusion", "samples": samples, "draws": self._config.draws, "loss_by_time": quarters}
        sheet = None
        if self._made is not None and len(self._made):
            names = self._classes or ("",)
            captions = tuple(names[index] if self._classes else "" for index in self._chosen())
            sheet = Sheet(self._made, captions, self._columns)
        return Evaluation({"loss": sum(sums) / max(1.0, sum(counts))}, details, sheet)
