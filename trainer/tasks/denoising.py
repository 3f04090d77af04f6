"""How well a generator takes noise out of images that it did not learn from, and what it makes of noise alone."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from functools import partial
from typing import TYPE_CHECKING, Any

import torch
from torch import nn

from trainer.config.tasks.diffusion import Config
from trainer.tasks.base import Batch, Evaluation, Sheet
from trainer.tasks.likeness import Likeness, LikenessMeasure

if TYPE_CHECKING:
    from trainer.tasks.diffusion import Diffusion

QUARTERS = 4
COLUMNS = 10


class DenoisingMeasure:
    """The loss over fixed noise, in all and by quarters of the time, images of fixed seeds, and how like the data they are."""

    def __init__(self, task: Diffusion, config: Config, device: torch.device, likeness: Likeness | None) -> None:
        self._task, self._config = task, config
        self._samples = torch.zeros(1, dtype=torch.int64, device=device)
        self._sums = torch.zeros(2, QUARTERS, dtype=torch.float64, device=device)  # of the losses, and how many
        self._made: torch.Tensor | None = None
        self._likeness = None if likeness is None else LikenessMeasure(likeness)
        self._known = likeness is not None and likeness.real is not None

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

    def wants(self) -> str | None:
        """Which images of the data it compares with and has not seen: `val`, `train`, or none."""
        fidelity = self._config.fidelity
        return None if fidelity is None or self._likeness is None or self._known else fidelity.against

    def refer(self, batches: Iterable[Batch], count: int) -> None:
        """Take in this rank's share of them."""
        assert self._likeness is not None
        self._likeness.refer(batches, count)

    def finish(self, network: nn.Module, rank: int, world: int, at: Callable[[str], None]) -> None:
        """Make this rank's share of the images: always the same ones at once, so that the number of ranks changes none."""
        channels, size = self._task.beside.image
        chosen = list(self._chosen())
        made = torch.zeros(len(chosen), channels, size, size, dtype=torch.uint8)
        batch, first = self._config.samples.batch, self._config.samples.seed
        make = partial(self._task.sample, network, plan=self._task.plan(), step=lambda: at("evaluate"))
        for start in range(rank * batch, len(chosen), world * batch):
            part = chosen[start : start + batch]
            made[start : start + batch] = make(range(first + start, first + start + len(part)), part)
        self._made = made
        if self._likeness is not None:
            self._likeness.make(make, first, batch, rank, world)

    def _chosen(self) -> Iterator[int]:
        """What the network is told of each image of the sheet: one class after the other, or texts."""
        numbers, columns, count = self._task.shown(), self._columns, self._config.samples.count
        for place in range(max(1, count // columns) * columns if count else 0):
            yield numbers[place % len(numbers)]

    @property
    def _columns(self) -> int:
        return min(len(self._task.shown()), COLUMNS) if self._task.told.words else 8

    def tensors(self) -> Sequence[torch.Tensor]:
        """What is to be summed over the ranks, in place."""
        more = [] if self._likeness is None else self._likeness.tensors()
        return [self._samples, self._sums, *([] if self._made is None else [self._made]), *more]

    def result(self) -> Evaluation:
        """The mean loss; by quarters of the time, from little noise to much, in the details; and the distances from the data."""
        (sums, counts), samples = self._sums.cpu().tolist(), int(self._samples)
        quarters = [total / count if count else None for total, count in zip(sums, counts, strict=True)]
        details: dict[str, Any] = {
            "kind": "diffusion", "samples": samples, "draws": self._config.draws, "loss_by_time": quarters,
        }  # fmt: skip
        metrics = {"loss": sum(sums) / max(1.0, sum(counts))}
        if self._likeness is not None:
            found, about = self._likeness.result()
            metrics, details = metrics | found, details | about
        sheet = None
        if self._made is not None and len(self._made):
            captions = tuple(self._task.word(number) for number in self._chosen())
            sheet = Sheet(self._made, captions, self._columns)
        return Evaluation(metrics, details, sheet)
