"""The features of a run: found or computed before the training, then read in place of the images."""

from __future__ import annotations

import logging
import os
import secrets
import socket
import time
from collections.abc import Callable, Iterable, Sequence
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn

from trainer.config import GraftError, RefusedError, Run, UserError
from trainer.data import ImageDataset
from trainer.data.batch import Batch
from trainer.data.dataset import BadCount
from trainer.features import fill, identity, room
from trainer.features.choose import Choice
from trainer.features.cut import Prefix, Tail
from trainer.features.identity import Ids
from trainer.features.samples import FeatureSamples, Rows
from trainer.features.store import Store, Turn, find
from trainer.features.trace import undisturbed
from trainer.runtime import Runtime
from trainer.spec import InputSpec
from trainer.track.work import WorkShown

log = logging.getLogger("graft.features")
_LOOK = 0.5  # seconds between two looks at whose turn it is
_CHECKED = 4  # samples that are sent through the whole network
_FP32, _TF32, _HALF = 1e-3, 1e-2, 0.1  # how far they may be apart, of the largest: what rounding comes to in other batches


class NotKeptError(Exception):
    """The features cannot be kept, with the reason; the same on every rank."""


class Features:
    """What a run keeps of its frozen first part.

    `tail` is what is called in place of the network: it takes features, or images, where it turns out that they cannot be kept.
    (None where the first part is a network of its own.)
    `train`, `val` and (of a generator that has one) `prior` are read in place of the images, once they are open.
    """

    def __init__(
        self, run: Run, runtime: Runtime, network: nn.Module, learning: Iterable[nn.Parameter], spec: InputSpec, choice: Choice
    ) -> None:  # fmt: skip
        assert choice.cut is not None
        self._run, self._runtime, self._network, self._spec, self._choice = run, runtime, network, spec, choice
        self._learning, self._cut = list(learning), choice.cut
        self._tf32 = bool(runtime.computing.told["tf32"])
        self.tail: Tail | None = Tail(network, choice.cut) if choice.cut.share else None
        self._stores: dict[str, Store] = {}
        self.train: FeatureSamples | None = None
        self.val: FeatureSamples | None = None
        self.prior: FeatureSamples | None = None
        self._at: Callable[[str], None] = lambda stage: None
        self._stop: Callable[[], bool] = lambda: False

    def open(
        self, train: ImageDataset, val: ImageDataset | None, bad: BadCount, *, at: Callable[[str], None],
        stop: Callable[[], bool], prior: ImageDataset | None = None,
    ) -> bool:  # fmt: skip
        """Find or compute the features of all; false where a wish to stop came between.

        The weights are the run's own by now. Where they cannot be kept (no room, a folder that not every node sees), the images
        are used; RefusedError where features are asked for. Raises UserError for what the data set would raise it for.
        """
        self._at, self._stop = at, stop
        began = time.monotonic()
        try:
            with undisturbed(self._network, self._runtime.device):
                self._network.eval()
                found = self._rows(train, self._choice.views, bad)
                held = self._rows(val, 1, bad) if val is not None and found is not None else None
                beside = self._rows(prior, self._choice.views, bad) if prior is not None and found is not None else None
                if found is None or (val is not None and held is None) or (prior is not None and beside is None):
                    return False
                self._check(train, found)
                if val is not None and held is not None:
                    self._check(val, held)
        except NotKeptError as problem:
            if self.tail is not None:
                self.tail.release()
            if self._run.data.cache.kind == "features":
                raise RefusedError(
                    f"data.cache: features, and they cannot be kept: {problem}; or write data.cache: none"
                ) from None
            log.warning("the features of the frozen part are not kept: %s", problem)
            return True
        self.train, self.val, self.prior = found, held, beside
        log.info("features: %s; ready after %.1f s", self._choice, time.monotonic() - began)
        return True

    def _rows(self, dataset: ImageDataset, views: int, bad: BadCount) -> FeatureSamples | None:
        """The features of a data set, complete; none where a wish to stop came between."""
        runtime = self._runtime
        key, ids = runtime.from_main(self._named(dataset, views) if runtime.main else None)
        store = self._store(key)
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
        rows = self._together(lambda: Rows(store, names, which, row, self._cut.shape, self._choice.dtype, self._cut.dtype))
        return FeatureSamples(dataset, rows, views, unread, store.folder)

    def _named(self, dataset: ImageDataset, views: int) -> tuple[dict[str, Any], Ids]:
        """What the features are of, as JSON, and an id for each row."""
        random = dataset.train and dataset.random
        ids = identity.samples(dataset.listing)
        return self._about(random=random), identity.views(ids, views) if random else ids

    def _about(self, *, random: bool) -> dict[str, Any]:
        """All that decides them, as JSON; `random`: the images are changed by chance."""
        return identity.description(
            self._run, self._spec, self._cut, self._network, self._learning,
            random=random, dtype=self._choice.dtype, tf32=self._tf32, device=self._runtime.device,
        )  # fmt: skip

    def _store(self, about: dict[str, Any]) -> Store:
        """The folder for a description, which every rank sees."""
        key = identity.key_of(about)
        if key not in self._stores:
            store = Store(room.folder(self._run.data.cache) / key, self._choice.row)
            mark = store.folder / f"seen-{self._runtime.from_main(secrets.token_hex(8))}"

            def make() -> None:
                if self._runtime.main:
                    store.create({**about, "by": self._run.name, "made": time.strftime("%Y-%m-%d %H:%M:%S")})
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
        row = self._choice.row
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
                shown = WorkShown(f"features are computed by {turn.holder()}", len(ids), shows=runtime.main)
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
        shown = WorkShown(f"features at '{self._cut.module}'", missing, shows=self._runtime.main)
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
        shown.close(f"features at '{self._cut.module}': {end}")
        log.info("features at '%s': %s", self._cut.module, end)
        return outcome

    def _first_part(self) -> Callable[[torch.Tensor], torch.Tensor]:
        """What sends images as far as the cut."""
        return Prefix(self._network, self._cut)

    def _compute(self) -> Callable[[Batch], torch.Tensor]:
        """Images to rows, uint8 [n, bytes]."""
        prefix, runtime, dtype = self._first_part(), self._runtime, self._choice.dtype

        def compute(batch: Batch) -> torch.Tensor:
            with torch.no_grad(), runtime.autocast():
                features = prefix(batch.to(runtime.device, self._spec).images)
            stored = features.to(dtype)
            if dtype != features.dtype and bool((features.isfinite() & ~stored.isfinite()).any()):
                raise UserError(f"data.cache.dtype: {str(dtype)[6:]} cannot hold these features; write bf16, or auto")
            return stored.cpu().contiguous().reshape(len(stored), -1).view(torch.uint8)

        return compute

    def _check(self, dataset: ImageDataset, samples: FeatureSamples) -> None:
        """Send a few samples through the whole network as well: whatever a key may have missed shows here."""
        if self._runtime.from_main(self._differs(dataset, samples) if self._runtime.main else None):
            raise NotKeptError(f"those in {samples.place} are not those of this network and these images; remove that folder")

    def _differs(self, dataset: ImageDataset, samples: FeatureSamples) -> bool:
        keys, device = [(0, index) for index in range(min(_CHECKED, len(dataset)))], self._runtime.device
        try:
            images = dataset.fetch(keys)
        except GraftError:  # what was computed once need not be readable any more
            return False
        kept = samples.fetch(keys)
        if not len(kept.labels) or not torch.equal(images.indices, kept.indices):
            return False
        with torch.no_grad(), self._runtime.autocast():
            wanted, given = self._both(images.to(device, self._spec).images, kept.to(device, None).images)
        whole = self._run.train.precision == "fp32" and self._choice.dtype == torch.float32
        near = _HALF if not whole else _TF32 if self._tf32 else _FP32
        return not bool((wanted - given).abs().max() <= near * wanted.abs().max() + 1e-6)

    def _both(self, images: torch.Tensor, features: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """What comes of images, and of what is kept of them: the same, if all is well."""
        assert self.tail is not None
        return _first(self._network(images)), _first(self.tail(features))


def _first(output: Any) -> torch.Tensor:
    while isinstance(output, tuple | list):
        output = output[0]
    return torch.as_tensor(output).float()
