"""Samples whose features are read where an image would be decoded, in the same order and with the same labels."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray

from trainer.data import Batch, ImageDataset, Order
from trainer.data.order import Key
from trainer.features.store import Store

IN_MEMORY = 256 << 20  # bytes that a rank holds itself; more is left to the system's cache of files
_EPOCH = 0xFFFFFFFF  # the part of a key that says the epoch; above it is the repetition within it


class Rows:
    """Rows of a store by number; `which` file and which `row` of it each is, -1 for those that are in none."""

    def __init__(
        self, store: Store, names: Sequence[str], which: NDArray[np.int64], row: NDArray[np.int64], shape: tuple[int, ...],
        stored: torch.dtype, dtype: torch.dtype,
    ) -> None:  # fmt: skip
        self._shape, self._stored, self._dtype = shape, stored, dtype
        used = sorted(set(which.tolist()) - {-1})
        maps = {index: store.open(names[index]) for index in used}
        self._which, self._row, self._maps = which, row, maps
        self._held: torch.Tensor | None = None
        width = torch.Size(shape).numel() * stored.itemsize
        if len(which) * width <= IN_MEMORY:
            held = torch.zeros(len(which), width, dtype=torch.uint8)
            for index, mapped in maps.items():
                mine = np.flatnonzero(which == index)
                held[torch.from_numpy(mine)] = torch.from_numpy(mapped[row[mine]])
            self._held, self._maps = held.view(stored).view(-1, *shape), {}

    def __call__(self, numbers: NDArray[np.int64]) -> torch.Tensor:
        """The features [n, …] of these rows, as they arrive at the cut."""
        if self._held is not None:
            found = self._held.index_select(0, torch.from_numpy(numbers))
        else:
            found = torch.empty(len(numbers), torch.Size(self._shape).numel(), dtype=self._stored)
            raw = found.view(torch.uint8).numpy()
            for place, (which, row) in enumerate(zip(self._which[numbers].tolist(), self._row[numbers].tolist(), strict=True)):
                raw[place] = self._maps[which][row]
            found = found.view(len(numbers), *self._shape)
        return found.to(self._dtype)


class FeatureSamples:
    """Takes the place of a data set of images: the same order, labels and indices, and features [n, …] as `images`.

    Row `view * n + index` is what the data set gives for the key (view, index). Key (epoch, index) reads view `epoch % views`,
    and the k-th repetition of a sample within an epoch the k-th view after that. `bad`: indices whose files cannot be read, each
    with path and reason: as without features the next sample takes its place in training, and in evaluation it is left out.
    """

    cheap = True

    def __init__(
        self, dataset: ImageDataset, rows: Rows, views: int, bad: Mapping[int, tuple[str, str]], place: Path
    ) -> None:  # fmt: skip
        self._dataset, self._rows, self._views, self._bad, self.place = dataset, rows, views, bad, place

    def __len__(self) -> int:
        return len(self._dataset)

    def order(self, seed: int) -> Order:
        """That of the data set."""
        return self._dataset.order(seed)

    def fetch(self, keys: Sequence[Key]) -> Batch:
        """The samples of (epoch, index) keys."""
        array, bad = np.array(keys, dtype=np.int64).reshape(-1, 2), list[tuple[str, str]]()
        if self._bad:
            array = self._readable(array, bad)
        epoch, index = np.ascontiguousarray(array[:, 0]), np.ascontiguousarray(array[:, 1])
        view = ((epoch & _EPOCH) + (epoch >> 32)) % self._views
        features = self._rows(view * len(self) + index)
        return self._dataset.batch(features, torch.from_numpy(epoch), torch.from_numpy(index), bad)

    def _readable(self, keys: NDArray[np.int64], bad: list[tuple[str, str]]) -> NDArray[np.int64]:
        kept: list[tuple[int, int]] = []
        for epoch, i in keys.tolist():
            while i in self._bad:
                bad.append(self._bad[i])
                if not self._dataset.train:
                    break
                i = (i + 1) % len(self)
            else:
                kept.append((epoch, i))
        return np.array(kept, dtype=np.int64).reshape(-1, 2)
