"""Takes a checkpoint without holding the training up longer than a copy of its state."""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable, Mapping
from typing import Any

import torch

from trainer.checkpoint.staging import StagedFile
from trainer.checkpoint.store import Store
from trainer.config import GraftError
from trainer.rundir import LeaseLostError

RETRY_AFTER = 30.0
log = logging.getLogger("graft.checkpoint")

Files = Mapping[str, Mapping[str, torch.Tensor]]


class Saver:
    """Stages a state in memory and commits it in a thread, one at a time.

    A disk that is full costs a checkpoint, never the training: the failure is logged, the old checkpoints stay, and `retry` asks
    for another one. A state that is not finite is never committed, save for the tensors in `meant` (a mask of minus infinity).
    """

    def __init__(
        self,
        store: Store,
        *,
        before_write: Callable[[], None],
        on_commit: Callable[[int], None],
        meant: frozenset[str] = frozenset(),
    ) -> None:
        self._store = store
        self._meant = meant
        self._before_write = before_write
        self._on_commit = on_commit
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

    def save(self, step: int, files: Files, state: dict[str, Any], *, best: float | None = None, wait: bool = False) -> None:
        """Copy the state and commit it in the background; with `wait`, return when it is durable or raise why it is not."""
        self.join()
        self._failed_at = None  # this is the other try
        self.reserve(files)
        for name, tensors in files.items():
            self._staged[name].copy(tensors)
        if torch.cuda.is_initialized():  # type: ignore[no-untyped-call]
            torch.cuda.synchronize()
        staged = dict(self._staged)
        self._thread = threading.Thread(target=self._commit, args=(step, staged, state, best), name="checkpoint")
        self._thread.start()
        if wait:
            self.join()
            if self._failure is not None:
                raise GraftError(f"the checkpoint of step {step} could not be written: {self._failure}")

    def _commit(self, step: int, staged: dict[str, StagedFile], state: dict[str, Any], best: float | None) -> None:
        try:
            for name, file in staged.items():
                bad = [tensor for tensor in file.unsound() if tensor not in self._meant]
                if bad:
                    raise GraftError(f"'{bad[0]}' in {name} of step {step} holds values that are not finite numbers")
            self._before_write()
            self._store.commit(step, {name: file.data for name, file in staged.items()}, state, best=best)
            self._failure = None
            self._on_commit(step)
        except BaseException as error:
            self._failure, self._failed_at = error, time.monotonic()
            log.warning("the checkpoint of step %d was not written: %s; the one before is kept", step, error)

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
