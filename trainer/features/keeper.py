"""Has rows ready that are kept in a folder which runs share: found, checked, computed by one of them while the others wait."""

from __future__ import annotations

import logging
import os
import secrets
import socket
import time
from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from trainer.config import GraftError, RefusedError, Run, UserError
from trainer.data.dataset import BadCount
from trainer.features import fill, identity, room
from trainer.features.identity import Ids
from trainer.features.store import Store, Turn, find
from trainer.runtime import Runtime
from trainer.track.work import WorkShown

log = logging.getLogger("graft.features")
_LOOK = 0.5  # seconds between two looks at whose turn it is


class NotKeptError(Exception):
    """The rows cannot be kept, with the reason; the same on every rank."""


@dataclass(frozen=True)
class Complete:
    """Rows that are all there: which file of `names` and which row of it each is. `bad`: path and reason of what cannot be read,
    by index.
    """

    store: Store
    names: list[str]
    which: NDArray[np.int64]
    row: NDArray[np.int64]
    bad: dict[int, tuple[str, str]]


class Keeper(ABC):
    """What kinds of rows have in common. `_row`: bytes of one, at most about so many."""

    _plural = "features"

    def __init__(self, run: Run, runtime: Runtime, row: int) -> None:
        self._run, self._runtime, self._row = run, runtime, row
        self._stores: dict[str, Store] = {}
        self._at: Callable[[str], None] = lambda stage: None
        self._stop: Callable[[], bool] = lambda: False

    @property
    @abstractmethod
    def _what(self) -> str:
        """What is computed, for people."""

    @abstractmethod
    def _told(self, about: dict[str, Any]) -> str:
        """What is kept, for whoever looks into the folder that is so described."""

    @abstractmethod
    def _new(self, folder: Path) -> Store:
        """The store of a folder."""

    @abstractmethod
    def _compute(self) -> fill.Compute:
        """What makes rows of a batch."""

    def _complete(
        self, dataset: fill.Source, views: int, named: Callable[[], tuple[dict[str, Any], Ids]], bad: BadCount
    ) -> Complete | None:  # fmt: skip
        """The rows of a data set, all there; none where a wish to stop came between.

        `named`: what they are of, as JSON, and an id for each, as rank 0 finds them.
        """
        runtime = self._runtime
        about, ids = runtime.from_main(named() if runtime.main else None)
        store = self._store(about)
        which, row, names = self._look(store, ids)
        missing = which < 0
        unread: dict[int, tuple[str, str]] = {}
        if missing.any():
            self._fits(len(ids), int(missing.sum()))
            turn = Turn(store.folder, f"{self._run.name} (process {os.getpid()} on {socket.gethostname()})")
            try:
                if not self._wait(turn, store, ids):
                    return None
                which, row, names = self._look(store, ids)
                if (which < 0).any():
                    outcome = self._fill(store, fill.Work(dataset, views, ids, which < 0), bad)
                    if outcome.stopped:
                        return None
                    unread = outcome.bad
                    which, row, names = self._look(store, ids)
            finally:
                turn.give()
        lost = {int(number) % len(dataset) for number in np.flatnonzero(which < 0)} - unread.keys()
        if lost:
            raise NotKeptError(f"{store.folder} does not hold what was just written; is somebody clearing it?")
        return Complete(store, names, which, row, unread)

    def _store(self, about: dict[str, Any]) -> Store:
        """The folder for a description, which every rank sees."""
        key = identity.key_of(about)
        if key not in self._stores:
            store = self._new(room.folder(self._run.data.cache) / key)
            mark = store.folder / f"seen-{self._runtime.from_main(secrets.token_hex(8))}"

            def make() -> None:
                if self._runtime.main:
                    made = time.strftime("%Y-%m-%d %H:%M:%S")
                    store.create({**about, "what": self._told(about), "by": self._run.name, "made": made})
                    mark.touch()

            self._together(make)
            unseen = [host for host, sees in self._runtime.everyone((socket.gethostname(), mark.exists())) if not sees]
            if self._runtime.main:
                mark.unlink(missing_ok=True)
            if unseen:
                raise NotKeptError(
                    f"{unseen[0]} does not see {store.folder}; name a folder that all nodes share as data.cache.path"
                )
            self._stores[key] = store
        return self._stores[key]

    def _together(self, make: Callable[[], Any]) -> Any:
        """Do something with files on every rank; where one cannot, none goes on."""
        made, problem = None, ""
        try:
            made = make()
        except OSError as error:
            problem = f"{error.filename or 'its folder'}: {error.strerror or error}"
        problems = [said for said in self._runtime.everyone(problem) if said]
        if problems:
            raise NotKeptError(problems[0])
        return made

    def _look(self, store: Store, ids: Ids) -> tuple[NDArray[np.int64], NDArray[np.int64], list[str]]:
        """(which file, which row of it, names of the files) for each id, in files that were checked; -1 for what is missing."""
        runtime = self._runtime
        while True:
            names = runtime.from_main([s.name for s in store.read(store.names())] if runtime.main else None)
            segments = self._together(lambda: store.read(names))  # noqa: B023 (called at once)
            if not all(runtime.everyone(len(segments) == len(names))):
                raise NotKeptError(f"not every rank can read the files in {store.folder}")
            which, row = find(ids, segments)
            used = [names[index] for index in sorted(set(which.tolist()) - {-1})]
            damaged = self._damaged(store, used)
            if not damaged:
                return which, row, names
            for name in damaged:
                log.warning("%s is damaged; what it held is computed again", store.folder / name)
                store.discard(name)
            runtime.barrier()

    def _damaged(self, store: Store, names: Sequence[str]) -> list[str]:
        """The files whose content is not what was written; each rank reads its share."""
        mine, bad = list(names[self._runtime.rank :: self._runtime.world]), list[str]()
        while True:
            until = time.monotonic() + 1.0
            while mine and time.monotonic() < until:
                self._at("data")
                name = mine.pop()
                if not store.whole(name):
                    bad.append(name)
            if not int(self._runtime.sum_host(torch.tensor([len(mine)]))):
                return [name for part in self._runtime.everyone(bad) for name in part]

    def _fits(self, rows: int, missing: int) -> None:
        """Raises NotKeptError where there is no room, as rank 0 sees it."""
        row = self._row
        reason = self._runtime.from_main(
            room.lacks(self._run.data.cache, rows * row, missing * row) if self._runtime.main else ""
        )
        if reason:
            raise NotKeptError(reason)

    def _wait(self, turn: Turn, store: Store, ids: Ids) -> bool:
        """Wait until nobody else computes rows of this folder (or does not get on any more); false where a stop is wished."""
        runtime, there, since, shown = self._runtime, -1, time.monotonic(), None
        while True:
            state = self._together(lambda: not runtime.main or turn.take())
            if runtime.from_main(state):
                if runtime.main:
                    store.clean()
                break
            now = int((find(ids, store.read(store.names()))[0] >= 0).sum()) if runtime.main else 0
            if shown is None:
                shown = WorkShown(f"{self._plural} are computed by {turn.holder()}", len(ids), shows=runtime.main)
            shown.told(now)
            if now != there:
                there, since = now, time.monotonic()
            late = time.monotonic() - since > self._run.parallel.timeout
            stop, late = runtime.sum_host(torch.tensor([int(self._stop()), int(runtime.main and late)])).tolist()
            if stop or late:
                shown.close("stopped" if stop else "the other run does not get on: this one computes them itself")
                return not stop
            self._at("data")
            time.sleep(_LOOK)
        if shown is not None:
            shown.close("the other run is done with them")
        return True

    def _fill(self, store: Store, work: fill.Work, bad: BadCount) -> fill.Outcome:
        missing, began = int(work.missing.sum()), time.monotonic()
        shown = WorkShown(self._what, missing, shows=self._runtime.main)
        outcome = fill.fill(
            store, work, self._compute(), self._runtime, workers=self._run.data.workers, stop=self._stop, check=bad.add,
            at=self._at, told=shown.told,
        )  # fmt: skip
        took = time.monotonic() - began
        if outcome.problem:
            shown.close(outcome.problem)
            if outcome.full:
                raise NotKeptError(outcome.problem)
            raise {2: UserError, 3: RefusedError}.get(outcome.code, GraftError)(outcome.problem)
        end = (
            "stopped; what is there stays" if outcome.stopped else f"{missing:,} samples in {took:.1f} s, kept in {store.folder}"
        )
        shown.close(f"{self._what}: {end}")
        log.info("%s: %s", self._what, end)
        return outcome
