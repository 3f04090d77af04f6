"""The features of a run: found or computed before the training, then read in place of the images."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import torch
from torch import nn

from trainer.config import GraftError, RefusedError, Run, UserError
from trainer.data import ImageDataset
from trainer.data.batch import Batch
from trainer.data.dataset import BadCount
from trainer.features import identity
from trainer.features.choose import Kept
from trainer.features.cut import Cut, Prefix, Tail
from trainer.features.identity import Ids
from trainer.features.keeper import Keeper, NotKeptError
from trainer.features.samples import FeatureSamples, Rows
from trainer.features.store import Store
from trainer.features.trace import undisturbed
from trainer.runtime import Runtime
from trainer.spec import InputSpec

log = logging.getLogger("graft.features")
_CHECKED = 4  # samples that are sent through the whole network
_FP32, _TF32, _HALF = 1e-3, 1e-2, 0.1  # how far they may be apart, of the largest: what rounding comes to in other batches


class Features(Keeper):
    """What a run keeps of its frozen first part.

    `tail` is what is called in place of the network: it takes features, or images, where it turns out that they cannot be kept.
    (None where the first part is a network of its own.)
    `train`, `val` and (of a generator that has one) `prior` are read in place of the images, once they are open.
    """

    def __init__(
        self, run: Run, runtime: Runtime, network: nn.Module, learning: Iterable[nn.Parameter], spec: InputSpec, kept: Kept
    ) -> None:  # fmt: skip
        super().__init__(run, runtime, kept.row)
        self._network, self._spec, self._kept = network, spec, kept
        self._learning = list(learning)
        self._tf32 = bool(runtime.computing.told["tf32"])
        self.tail: Tail | None = None if kept.cut is None else Tail(network, kept.cut)
        self.train: FeatureSamples | None = None
        self.val: FeatureSamples | None = None
        self.prior: FeatureSamples | None = None

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
                found = self._rows(train, self._kept.views, bad)
                held = self._rows(val, 1, bad) if val is not None and found is not None else None
                beside = self._rows(prior, self._kept.views, bad) if prior is not None and found is not None else None
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
        log.info("features: %s; ready after %.1f s", self._kept.short, time.monotonic() - began)
        return True

    @property
    def _what(self) -> str:
        return f"features {self._kept.where}"

    def _told(self, about: dict[str, Any]) -> str:
        return self._kept.short

    @property
    def _cut(self) -> Cut:
        assert self._kept.cut is not None
        return self._kept.cut

    def _new(self, folder: Path) -> Store:
        return Store(folder, self._row)

    def _rows(self, dataset: ImageDataset, views: int, bad: BadCount) -> FeatureSamples | None:
        """The features of a data set, complete; none where a wish to stop came between."""
        found = self._complete(dataset, views, lambda: self._named(dataset, views), bad)
        if found is None:
            return None
        rows = self._together(
            lambda: Rows(found.store, found.names, found.which, found.row, self._kept.shape, self._kept.dtype, self._kept.given)
        )
        return FeatureSamples(dataset, rows, views, found.bad, found.store.folder)

    def _named(self, dataset: ImageDataset, views: int) -> tuple[dict[str, Any], Ids]:
        """What the features are of, as JSON, and an id for each row."""
        random = dataset.train and dataset.random
        ids = identity.samples(dataset.listing)
        return self._about(random=random), identity.views(ids, views) if random else ids

    def _about(self, *, random: bool) -> dict[str, Any]:
        """All that decides them, as JSON; `random`: the images are changed by chance."""
        return identity.description(
            self._run, self._spec, self._cut, self._network, self._learning,
            random=random, dtype=self._kept.dtype, tf32=self._tf32, device=self._runtime.device,
        )  # fmt: skip

    def _first_part(self) -> Callable[[torch.Tensor], torch.Tensor]:
        """What sends images as far as the cut."""
        return Prefix(self._network, self._cut)

    def _compute(self) -> Callable[[Batch], torch.Tensor]:
        """Images to rows, uint8 [n, bytes]."""
        prefix, runtime, dtype = self._first_part(), self._runtime, self._kept.dtype

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
        whole = self._run.train.precision == "fp32" and self._kept.dtype == torch.float32
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
