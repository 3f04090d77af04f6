"""What an evaluation makes: a sheet of images of fixed seeds, and as many more as it takes to say how like the data they are."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from functools import partial
from typing import Any, Protocol

import torch
from torch import nn

from trainer.config.fidelity import Fidelity
from trainer.tasks.base import Batch, Makes, Sheet
from trainer.tasks.likeness import Likeness, LikenessMeasure

COLUMNS, WORDLESS = 10, 8  # of a sheet: at most, of classes or texts; and where the network is told nothing


class Shown(Protocol):
    """How many images are shown, of which seeds on, and how many are made at once."""

    @property
    def count(self) -> int: ...
    @property
    def seed(self) -> int: ...
    @property
    def batch(self) -> int: ...


class Making:
    """The part of a measure that makes images; always the same ones at once, so that the number of ranks changes none."""

    def __init__(self, task: Makes, samples: Shown, fidelity: Fidelity | None, likeness: Likeness | None) -> None:
        self._maker, self._shown, self._fidelity, self._compared = task, samples, fidelity, likeness
        self._made: torch.Tensor | None = None
        self._likeness = None if likeness is None else LikenessMeasure(likeness)
        self._known = likeness is not None and likeness.real is not None

    def add(self, logits: torch.Tensor, batch: Batch) -> None:
        """Never asked for: what a network makes is not kept."""
        raise TypeError("the figures of a generator do not follow from logits")

    def wants(self) -> str | None:
        """Which images of the data it compares with and has not seen: `val`, `train`, or none."""
        return None if self._fidelity is None or self._likeness is None or self._known else self._fidelity.against

    def refer(self, batches: Iterable[Batch], count: int) -> None:
        """Take in this rank's share of them."""
        assert self._likeness is not None
        self._likeness.refer(batches, count)

    def finish(self, network: nn.Module, rank: int, world: int, at: Callable[[str], None]) -> None:
        """Make this rank's share of the images."""
        at("make")
        channels, size = self._maker.image()
        chosen = list(self._chosen())
        made = torch.zeros(len(chosen), channels, size, size, dtype=torch.uint8)
        batch, first = self._shown.batch, self._shown.seed
        make = partial(self._maker.sample, network, plan=self._maker.plan(), step=lambda: at("make"))
        for start in range(rank * batch, len(chosen), world * batch):
            part = chosen[start : start + batch]
            made[start : start + batch] = make(range(first + start, first + start + len(part)), part)
        self._made = made
        if self._likeness is not None:
            self._likeness.make(make, first, batch, rank, world)

    def _chosen(self) -> Iterator[int]:
        """What the network is told of each image of the sheet: one class after the other, or texts."""
        numbers, columns, count = self._maker.shown(), self._columns, self._shown.count
        for place in range(max(1, count // columns) * columns if count else 0):
            yield numbers[place % len(numbers)]

    @property
    def _columns(self) -> int:
        numbers = self._maker.shown()
        return min(len(numbers), COLUMNS) if self._maker.word(numbers[0]) else WORDLESS

    def summed(self) -> list[torch.Tensor]:
        """What of it is to be summed over the ranks, in place."""
        return [*([] if self._made is None else [self._made]), *([] if self._likeness is None else self._likeness.tensors())]

    def likeness(self) -> tuple[dict[str, float], dict[str, Any]]:
        """How like the data the images are, and what that is of; nothing where it is not asked."""
        return ({}, {}) if self._likeness is None else self._likeness.result()

    def sheet(self) -> Sheet | None:
        """The images of fixed seeds."""
        if self._made is None or not len(self._made):
            return None
        return Sheet(self._made, tuple(self._maker.word(number) for number in self._chosen()), self._columns)


class MakingMeasure(Making):
    """A measure of what is made alone: it takes no batches of an evaluation, which need not be read for it."""

    def update(self, network: nn.Module, batch: Batch) -> None:
        """Never asked for."""
        raise TypeError("the figures of what a network makes do not follow from batches")

    def tensors(self) -> Sequence[torch.Tensor]:
        """What is to be summed over the ranks, in place."""
        return self.summed()
