"""Computes the rows that a store lacks, by all ranks together, so that it can be stopped anywhere and goes on there."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import closing
from dataclasses import dataclass, field
from typing import Any, Protocol

import numpy as np
import torch
from numpy.typing import NDArray

from trainer.config import GraftError
from trainer.data import Batch
from trainer.data.loader import Samples, load
from trainer.data.order import Key
from trainer.faultpoints import reached
from trainer.features.identity import Ids
from trainer.features.store import Store
from trainer.runtime import Runtime

UNIT = 32  # samples in a pass: always the same ones together, since rounding may follow the batch
_ROUND = 1.0  # seconds after which the ranks hear of each other
_FLUSH = 15.0  # seconds of work that a kill may cost
_MOST = 64 << 20  # bytes in a file


class Source(Samples, Protocol):
    """What rows are made of. `train`: another sample stands in for one that cannot be read."""

    train: bool


@dataclass
class Work:
    """Rows that are wanted: `views` of each sample of a data set, `ids` [views * n, 2], and those of them that are `missing`."""

    dataset: Source
    views: int
    ids: Ids
    missing: NDArray[np.bool_]

    def units(self) -> list[list[Key]]:
        """The passes in which something is missing, by their keys."""
        n = len(self.dataset)
        starts = [(view, start) for view in range(self.views) for start in range(0, n, UNIT)]
        return [
            [(view, index) for index in range(start, min(n, start + UNIT))]
            for view, start in starts
            if self.missing[view * n + start : view * n + min(n, start + UNIT)].any()
        ]


@dataclass
class Outcome:
    """How it ended: `stopped` by a wish, or the `problem` of a rank, in words, with its exit code (`full`: of the disk).

    `bad`: path and reason of what cannot be read, by index.
    """

    stopped: bool = False
    problem: str = ""
    code: int = 0
    full: bool = False
    bad: dict[int, tuple[str, str]] = field(default_factory=dict)


Compute = Callable[[Batch], torch.Tensor]
Told = Callable[[int], None]


def fill(
    store: Store, work: Work, compute: Compute, runtime: Runtime, *, workers: int, stop: Callable[[], bool],
    check: Callable[[Sequence[tuple[str, str]]], None], at: Callable[[str], None], told: Told,
) -> Outcome:  # fmt: skip
    """Compute what is missing: `compute` gives uint8 rows [n, bytes] of a batch, `check` refuses too many unreadable files.

    `at` hears that something goes on, `told` how many rows all ranks have computed. The same outcome on every rank.
    """
    units = work.units()[runtime.rank :: runtime.world]
    mine = _Mine(store, work, compute, check, at)
    with closing(load(work.dataset, iter(units), workers if units else 0, pin=False, ahead=2)) as batches:
        steps = mine.steps(units, batches)
        going = True
        while True:
            until = time.monotonic() + _ROUND
            while going and time.monotonic() < until and not stop():
                going = next(steps, None) is not None
            wish = bool(stop())
            if not going:
                mine.flush()
            state = torch.tensor([wish, going and not wish, bool(mine.problem), mine.rows], dtype=torch.int64)
            wishes, left, problems, rows = runtime.sum_host(state).tolist()
            told(rows)
            if problems or wishes or not left:
                break
    mine.flush()  # also where it was another rank that stopped
    outcome = Outcome(stopped=bool(wishes))
    for rank in runtime.everyone((mine.problem, mine.code, mine.full, mine.bad)):
        if rank[0] and not outcome.problem:
            outcome.problem, outcome.code, outcome.full = rank[:3]
        outcome.bad |= rank[3]
    if outcome.full:
        mine.clear()  # the room is needed for checkpoints
    return outcome


class _Mine:
    """The part of one rank."""

    def __init__(
        self, store: Store, work: Work, compute: Compute, check: Callable[[Sequence[tuple[str, str]]], None],
        at: Callable[[str], None],
    ) -> None:  # fmt: skip
        self._store, self._work, self._compute, self._check, self._at = store, work, compute, check, at
        self._held: list[tuple[NDArray[np.int64], torch.Tensor]] = []
        self._bytes, self._flushed = 0, time.monotonic()
        self._written: list[str] = []
        self._passes = 0
        self.rows = 0
        self.bad: dict[int, tuple[str, str]] = {}
        self.problem, self.code, self.full = "", 0, False

    def steps(self, units: Sequence[Sequence[Key]], batches: Iterator[Batch]) -> Iterator[Any]:
        """One pass after the other; ends early with a problem."""
        for unit in units:
            try:
                self._step(unit, next(batches))
            except GraftError as error:
                self.problem, self.code = str(error), error.code
            if self.problem:
                return
            yield True

    def _step(self, unit: Sequence[Key], batch: Batch) -> None:
        self._at("data")
        n = len(self._work.dataset)
        wanted = np.array(unit, dtype=np.int64)
        good = np.ones(len(unit), np.bool_)
        if batch.bad:
            found = unreadable(unit, batch, n, train=self._work.dataset.train)
            self.bad |= found
            self._check(batch.bad)
            good = np.array([index not in found for _, index in unit])
        numbers = wanted[:, 0] * n + wanted[:, 1]
        keep = good & self._work.missing[numbers]
        if len(batch.labels):
            rows = self._compute(batch)
            present = np.flatnonzero(good) if len(batch.labels) < len(unit) else np.arange(len(unit))
            chosen = torch.from_numpy(np.flatnonzero(keep[present]))
            self._held.append((numbers[keep], rows[chosen]))
            self._bytes += rows.nbytes
        self.rows += int(keep.sum())
        self._passes += 1
        reached("features-computed", self._passes)
        if self._bytes >= _MOST or time.monotonic() - self._flushed > _FLUSH:
            self.flush()

    def flush(self) -> None:
        """Write what is computed; a problem is kept in words."""
        held, self._held, self._bytes, self._flushed = self._held, [], 0, time.monotonic()
        numbers = np.concatenate([part for part, _ in held]) if held else np.empty(0, np.int64)
        if not len(numbers) or self.problem:
            return
        try:
            self._written.append(self._store.write(self._work.ids[numbers], [rows for _, rows in held]))
        except OSError as error:
            self.full = True
            self.problem = f"{self._store.folder}: {error.strerror or error}"

    def clear(self) -> None:
        """Remove what was written here."""
        for name in self._written:
            self._store.discard(name)


def unreadable(unit: Sequence[Key], batch: Batch, n: int, *, train: bool) -> dict[int, tuple[str, str]]:
    """The indices of a pass whose files cannot be read, with path and reason; `batch.bad` names them in the order of the keys.

    In training the next sample that can be read stands in for one, and all that were tried before it are named.
    """
    found: dict[int, tuple[str, str]] = {}
    given, said = iter(batch.indices.tolist()), iter(batch.bad)
    if train:
        for (_, index), other in zip(unit, given, strict=True):
            for step in range((other - index) % n):
                found[(index + step) % n] = next(said)
        return found
    kept = set(batch.indices.tolist())
    return {index: next(said) for _, index in unit if index not in kept}
