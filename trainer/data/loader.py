"""From a data set to batches: in this process, or by worker processes that no signal and no orphanage leaves behind."""

from __future__ import annotations

import atexit
import contextlib
import ctypes
import os
import signal
import sys
import threading
import warnings
from collections.abc import Generator, Iterable, Iterator, Sequence
from functools import partial
from multiprocessing.connection import wait
from typing import Any, Protocol

import torch
from torch.utils.data import DataLoader, Dataset

from trainer.config.errors import GraftError
from trainer.data.batch import Batch
from trainer.data.dataset import ImageDataset
from trainer.data.order import Key, Order, share

_SIGNALS = {signal.SIGTERM, signal.SIGUSR1, signal.SIGINT}
_PR_SET_PDEATHSIG = 1


class Samples(Protocol):
    """What is loaded: a data set of images, or what stands in for one. `cheap`: fetching is indexing."""

    @property
    def cheap(self) -> bool: ...

    def __len__(self) -> int: ...

    def order(self, seed: int) -> Order:
        """The order of training."""

    def fetch(self, keys: Sequence[Key]) -> Batch:
        """The samples of (epoch, index) keys."""


def train_batches(
    dataset: Samples,
    *,
    seed: int,
    start_step: int,
    steps: int,
    global_batch: int,
    micro_batch: int,
    rank: int,
    world: int,
    workers: int,
    pin: bool,
) -> Generator[list[Batch], None, None]:
    """This rank's micro-batches of each optimizer step from `start_step` up to `steps`, one list a step.

    The same for any number of workers and any start. `close()` it to end the workers at once. Raises UserError for more ranks
    than samples a step, GraftError when a worker dies, and what `fetch` raises.
    """
    cuts = share(global_batch, rank, world, micro_batch)
    order = dataset.order(seed)

    def keys() -> Iterator[list[Key]]:
        for step in range(start_step, steps):
            first = step * global_batch
            for cut in cuts:
                yield order.slice(first + cut.start, first + cut.stop)

    return _by_step(load(dataset, keys(), workers if start_step < steps else 0, pin, 2 * len(cuts)), len(cuts))


def eval_batches(dataset: Samples, *, batch: int, rank: int, world: int, workers: int, pin: bool) -> Generator[Batch, None, None]:
    """This rank's samples rank, rank + world, … each exactly once, none added; batches of at most `batch`, each of one bucket.

    Over all ranks that is every sample once. The workers end with the last batch, or with `close()`.
    """
    indices = range(rank, len(dataset), world)
    buckets = dataset.buckets if isinstance(dataset, ImageDataset) else None
    alike: Sequence[Sequence[int]] = [indices] if buckets is None else buckets.apart(indices)
    keys = [[(0, index) for index in one[start : start + batch]] for one in alike for start in range(0, len(one), batch)]
    return load(dataset, keys, min(workers, len(keys)), pin, 2)


def _by_step(batches: Generator[Batch, None, None], count: int) -> Generator[list[Batch], None, None]:
    with contextlib.closing(batches):
        group: list[Batch] = []
        for batch in batches:
            group.append(batch)
            if len(group) == count:
                yield group
                group = []


def load(dataset: Samples, keys: Iterable[list[Key]], workers: int, pin: bool, ahead: int) -> Generator[Batch, None, None]:
    """The batches of key lists, in order; each worker prepares up to `ahead` of them."""
    if workers == 0 or dataset.cheap:  # indexing costs less than sending the result
        for wanted in keys:
            batch = dataset.fetch(wanted)
            yield batch.pin_memory() if pin else batch
        return
    iterator = _start(dataset, keys, workers, pin, ahead)
    processes = list(iterator._workers)
    end = partial(_end, iterator, processes)
    atexit.register(end)  # before multiprocessing's own, which would wait for ever for workers that ignore SIGTERM
    try:
        while True:
            try:
                batch = next(iterator)
            except StopIteration:
                return
            except (RuntimeError, OSError, EOFError) as error:
                raise _explained(error, processes) from None
            if isinstance(batch, GraftError):
                raise batch
            yield batch
    finally:
        atexit.unregister(end)
        end()


def _end(iterator: Any, processes: Sequence[Any]) -> None:
    iterator._shutdown_workers()
    for process in processes:
        if process.is_alive():  # torch sends SIGTERM, which workers ignore
            process.kill()
        process.join()


class _Fetching(Dataset[Any]):
    """Fetches in a worker. An error that is a message to a person travels as a value: torch would wrap it in a traceback."""

    def __init__(self, dataset: Samples) -> None:
        self.dataset = dataset

    def __getitem__(self, keys: Sequence[Key]) -> Batch | GraftError:
        try:
            return self.dataset.fetch(keys)
        except GraftError as error:
            return error


def _same(value: Any) -> Any:
    return value


def _start(dataset: Samples, keys: Iterable[list[Key]], workers: int, pin: bool, ahead: int) -> Any:
    """torch's loader with its workers running.

    The signals are blocked across the fork, so that none finds a worker before it ignores them. The loader draws from a
    generator of its own instead of the training's. Its SIGCHLD handler is put away: it would raise for a dead worker anywhere in
    the training, while the next batch raises where the cause can be told.
    """
    main = threading.current_thread() is threading.main_thread()
    handler = signal.getsignal(signal.SIGCHLD)
    blocked = signal.pthread_sigmask(signal.SIG_BLOCK, _SIGNALS)
    try:
        with warnings.catch_warnings():
            # More workers than cores is the user's choice; forking beside other threads is what torch's loader does.
            warnings.filterwarnings("ignore", message="This DataLoader will create", category=UserWarning)
            warnings.filterwarnings("ignore", message=".*fork", category=DeprecationWarning)
            loader: DataLoader[Any] = DataLoader(
                _Fetching(dataset),
                batch_size=None,
                sampler=keys,
                num_workers=workers,
                collate_fn=_same,
                pin_memory=pin,
                prefetch_factor=max(2, -(-ahead // workers)),
                worker_init_fn=_settle,
                multiprocessing_context="fork",
                generator=torch.Generator(),
            )
            return iter(loader)
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, blocked)
        if main and handler is not None:
            signal.signal(signal.SIGCHLD, handler)


def _settle(worker: int) -> None:
    """In a worker: deaf to what stops the run (the ranks decide when), one thread, and gone when its rank is gone.

    To Linux the parent is the thread that asked for the first batch: it must live as long as the batches are wanted.
    """
    for number in _SIGNALS:
        signal.signal(number, signal.SIG_IGN)
    torch.set_num_threads(1)
    if sys.platform == "linux":
        parent = os.getppid()
        ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL, 0, 0, 0)
        if parent == 1 or os.getppid() != parent:
            os._exit(1)


def _explained(error: Exception, processes: Sequence[Any]) -> Exception:
    """A dead worker in words; any other error is a bug and stays as it is."""
    if isinstance(error, OSError | EOFError):  # the connection to a worker broke, which is seen before its end
        with contextlib.suppress(RuntimeError):  # of torch's handler of SIGCHLD, which may come only now
            ended = wait([p.sentinel for p in processes], timeout=1.0)
            for process in processes:
                if process.sentinel in ended:
                    process.join(1.0)
    dead = [p for p in processes if p.exitcode not in (None, 0)]
    if str(error).startswith("Caught ") or not dead:
        return error
    process = dead[0]
    code = process.exitcode
    how = f"was ended by {signal.Signals(-code).name}" if code < 0 else f"ended with exit code {code}"
    hint = {
        -signal.SIGKILL: "; perhaps the machine ran out of memory: lower data.workers",
        -signal.SIGBUS: "; perhaps /dev/shm is full: enlarge it, or set data.workers to 0",
    }.get(code, "")
    return GraftError(
        f"loader worker {process.pid} {how}{hint}; the run goes on from its last checkpoint when it is started again"
    )
