"""Takes a checkpoint without holding the training up longer than a copy of its state."""

from __future__ import annotations

import contextlib
import logging
import threading
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, Protocol

import torch

from trainer.checkpoint.cost import Cost, Shadow
from trainer.checkpoint.read import part
from trainer.checkpoint.staging import Contents, StagedFile
from trainer.checkpoint.store import Facts, Store, write_files
from trainer.config import GraftError
from trainer.rundir import LeaseLostError

RETRY_AFTER = 30.0
log = logging.getLogger("graft.checkpoint")

Files = Mapping[str, Contents]


class Others(Protocol):
    """The ranks that save together, each its own files; called from one thread of each, in the same order."""

    rank: int
    world: int

    def tell(self, value: Any) -> Any:
        """Rank 0's value, on every rank."""

    def gather(self, value: Any) -> list[Any]:
        """The values of all ranks, on every rank."""


class Alone:
    """One rank saves everything."""

    rank, world = 0, 1

    def tell(self, value: Any) -> Any:
        """The value."""
        return value

    def gather(self, value: Any) -> list[Any]:
        """The value."""
        return [value]


class Saver:
    """Stages a state in memory and commits it in a thread, one at a time.

    A disk that is full costs a checkpoint, never the training: the failure is logged, the old checkpoints stay, and `retry` asks
    for another one. A state that is not finite is never committed, save for the tensors in `meant` (a mask of minus infinity).

    Where several ranks save, each has a saver and writes its own files into the folder that rank 0 makes; rank 0 commits it when
    all are durable, and none when one of them failed.

    `on_cost` hears, on rank 0 and in the thread, what a checkpoint cost; for that `stepped` is called after every step, and
    `aside` where something else than a step goes on.
    """

    def __init__(
        self,
        store: Store,
        *,
        before_write: Callable[[], None],
        on_commit: Callable[[int], None],
        meant: frozenset[str] = frozenset(),
        others: Others | None = None,
        on_cost: Callable[[Cost], None] = lambda cost: None,
    ) -> None:
        self._store = store
        self._others: Others = others or Alone()
        self._meant = meant
        self._before_write = before_write
        self._on_commit = on_commit
        self._on_cost = on_cost
        self._shadow = Shadow()
        self._left = 0.0  # when the training left its steps for the save under way
        self._held: float | None = None  # for how long; none while it is away
        self._sizes: list[tuple[float, int]] = []  # by rank: seconds held, bytes
        self._staged: dict[str, StagedFile] = {}
        self._thread: threading.Thread | None = None
        self._failure: BaseException | None = None
        self._failed_at: float | None = None

    def reserve(self, files: Files) -> None:
        """Allocate and touch the memory for these tensors: as many bytes as they have, once."""
        for name, tensors in files.items():
            if name not in self._staged or not self._staged[name].fits(tensors):
                self._staged[name] = StagedFile(tensors)
        self._staged = {name: self._staged[name] for name in files}

    @property
    def retry(self) -> bool:
        """Whether the last commit failed long enough ago to try again."""
        return self._failed_at is not None and time.monotonic() - self._failed_at > RETRY_AFTER

    @property
    def busy(self) -> bool:
        """Whether a commit is under way."""
        thread = self._thread
        return thread is not None and thread.is_alive()

    def stepped(self) -> None:
        """A step has ended."""
        self._shadow.step(self.busy)

    def aside(self) -> None:
        """The training does something else now, which is no part of a step's time."""
        self._shadow.aside()

    def save(
        self, step: int, files: Files, state: dict[str, Any], *, best: float | None = None, wait: bool = False,
        since: float | None = None,
    ) -> None:  # fmt: skip
        """Copy the state and commit it in the background; with `wait`, return when it is durable or raise why it is not.

        `since` (perf_counter): when the training left its steps for this; the wait for the checkpoint before counts, too.
        """
        left = time.perf_counter() if since is None else since
        self.join()
        self._failed_at = None  # this is the other try
        self._left, self._held = left, None
        self.reserve(files)
        for name, tensors in files.items():
            self._staged[name].copy(tensors)
        if torch.cuda.is_initialized():  # type: ignore[no-untyped-call]
            torch.cuda.synchronize()
        self._shadow.begin()
        commit = step, dict(self._staged), state, best, wait
        self._thread = threading.Thread(target=self._commit, args=commit, name="checkpoint")
        self._thread.start()
        self._held = time.perf_counter() - left  # with the start of the thread, which waits until that runs
        if wait:
            self.join()
            if self._failure is not None:
                raise GraftError(f"the checkpoint of step {step} could not be written: {self._failure}")

    def _commit(
        self, step: int, staged: dict[str, StagedFile], state: dict[str, Any], best: float | None, waited: bool
    ) -> None:  # fmt: skip
        began = time.perf_counter()
        self._sizes = []
        try:
            if self._others.rank == 0:
                self._lead(step, staged, state, best)
            else:
                self._follow(step, staged)
            self._failure = None
            if self._sizes and self._others.rank == 0:  # else it was there already
                now = time.perf_counter()
                stall = now - self._left if waited else max(held for held, _ in self._sizes)
                cost = Cost(step, stall, now - began, sum(size for _, size in self._sizes), self._shadow.ratio())
                log.info("the checkpoint of step %d: %s", step, cost.text())
                self._on_cost(cost)
        except BaseException as error:
            self._failure, self._failed_at = error, time.monotonic()
            log.warning("the checkpoint of step %d was not written: %s; the one before is kept", step, error)

    def _lead(self, step: int, staged: dict[str, StagedFile], state: dict[str, Any], best: float | None) -> None:
        """On rank 0: make the folder, let every rank write into it, commit it, and say what became of it."""
        told = False

        def write(folder: Path) -> Facts:
            nonlocal told
            told = True
            self._others.tell(str(folder))
            return self._together(folder, step, staged)

        failure: BaseException | None = None
        try:
            self._before_write()
            self._store.commit(step, write, state, best=best)
            self._on_commit(step)
        except BaseException as error:
            failure = error
        if not told:
            self._others.tell(None)
        self._others.tell(failure and (isinstance(failure, GraftError), str(failure)))
        if failure is not None:
            raise failure

    def _follow(self, step: int, staged: dict[str, StagedFile]) -> None:
        """On the other ranks: write into the folder that rank 0 made, and hear what became of it."""
        folder = self._others.tell(None)
        if folder is not None:
            with contextlib.suppress(GraftError, OSError):  # rank 0 heard of it, and says it again
                self._together(Path(folder), step, staged)
        if (failed := self._others.tell(None)) is not None:
            _raise(*failed)

    def _together(self, folder: Path, step: int, staged: dict[str, StagedFile]) -> Facts:
        """Write this rank's files; those of all ranks. Raises on every rank what any of them raised."""
        mine: tuple[Facts, tuple[bool, str] | None]
        world = self._others.world
        try:
            self._sound(step, staged)
            names = {name: name if world == 1 else part(name, self._others.rank, world) for name in staged}
            mine = write_files(folder, {names[name]: file.data for name, file in staged.items()}, step), None
        except Exception as error:
            if world == 1:
                raise
            mine = {}, (isinstance(error, GraftError), str(error))
        facts: Facts = {}
        held = self._held
        sizes = time.perf_counter() - self._left if held is None else held, sum(file.data.nbytes for file in staged.values())
        for size, found, failed in self._others.gather((sizes, *mine)):
            if failed is not None:
                _raise(*failed)
            facts |= found
            self._sizes.append(size)
        return facts

    def _sound(self, step: int, staged: dict[str, StagedFile]) -> None:
        """Raises GraftError for values that are not finite."""
        for name, file in staged.items():
            bad = [tensor for tensor in file.unsound() if tensor not in self._meant]
            if bad:
                raise GraftError(f"'{bad[0]}' in {name} of step {step} holds values that are not finite numbers")

    def wait(self) -> None:
        """Wait for the commit under way, whatever becomes of it."""
        if self._thread is not None:
            self._thread.join()
            self._thread = None

    def join(self) -> None:
        """Wait for the commit under way. Raises when it found that the folder belongs to another process or the state is lost."""
        self.wait()
        if isinstance(self._failure, LeaseLostError | GraftError):
            raise self._failure


def _raise(ours: bool, said: str) -> None:
    """What another rank raised."""
    raise GraftError(said) if ours else OSError(said)
