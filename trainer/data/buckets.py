"""Images sorted by their aspect into sizes of about one area, and the order in which every step has images of one size."""

from __future__ import annotations

import logging
import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from trainer.config.buckets import Sides, sizes
from trainer.config.run import Run
from trainer.config.sources import Listing
from trainer.data import readers
from trainer.data.images import BadImageError
from trainer.data.order import Key, Order, mix, permutation

log = logging.getLogger("graft")
_WITHIN, _STEPS = 0x6275636B, 0x73746570  # keep the draws of a bucket, and of the steps of an epoch, apart


@dataclass(frozen=True)
class Sorted:
    """The bucket of each sample of a listing: `of` [n] are places in `sizes`, (height, width) in pixels.

    `together`: as many samples of one size come together, a global batch.
    """

    sizes: tuple[Sides, ...]
    of: NDArray[np.int64]
    together: int

    def size(self, index: int) -> Sides:
        """That of a sample."""
        return self.sizes[int(self.of[index])]

    def apart(self, indices: Sequence[int]) -> list[list[int]]:
        """These samples by size, each in their order."""
        held: dict[int, list[int]] = {}
        for index in indices:
            held.setdefault(int(self.of[index]), []).append(index)
        return [held[bucket] for bucket in sorted(held)]

    def counts(self) -> NDArray[np.int64]:
        """Samples a bucket."""
        return np.bincount(self.of, minlength=len(self.sizes)).astype(np.int64)

    def __str__(self) -> str:
        """Width x height and count of each that is not empty."""
        named = zip(self.sizes, self.counts().tolist(), strict=True)
        return ", ".join(f"{count:,} of {width} x {height}" for (height, width), count in named if count)

    def warn(self) -> None:
        """Say which buckets have fewer images than a step."""
        small = [
            f"{width} x {height} ({count})"
            for (height, width), count in zip(self.sizes, self.counts().tolist(), strict=True)
            if 0 < count < self.together
        ]
        if small:
            log.warning(
                "data.buckets: fewer images than the %d of a step in %s: such a step shows an image more than once, and comes "
                "less than once an epoch; a lower max_ratio or a larger step makes fewer buckets",
                self.together, ", ".join(small),
            )  # fmt: skip


def nearest(among: Sequence[Sides], height: int, width: int) -> int:
    """The place of the size whose aspect is nearest, by the ratio of the aspects; of two as near the first."""
    aspect = math.log(width / height)
    return min(range(len(among)), key=lambda place: abs(math.log(among[place][1] / among[place][0]) - aspect))


def sort(run: Run, listing: Listing, side: int) -> Sorted:
    """Each image of a listing to its bucket, by the size that its header says.

    One whose header cannot be read goes with the square ones: it is told of when its turn comes. `side` is that of the square.
    """
    assert run.data.buckets is not None
    reader, among = readers.reader(listing), sizes(run.data.buckets, side)
    known: dict[Sides, int] = {}
    of = np.zeros(len(listing.items), dtype=np.int64)
    for place, item in enumerate(listing.items):
        try:
            found = reader.sides(item.key)
        except BadImageError:
            continue
        if found not in known:
            known[found] = nearest(among, *found)
        of[place] = known[found]
    return Sorted(among, of, run.train.global_batch)


class BucketOrder(Order):
    """An order in which every global batch holds images of one bucket.

    A bucket of m images has its own endless order, in which each comes once in m. Before epoch e of n samples it has given
    round(e * m / G) batches of G, so that each image comes once an epoch on average, and what a bucket has over or lacks at the
    end of an epoch is made up for in the next. The batches of an epoch are permuted by (seed, epoch) alone. The epoch of a key
    is that of the bucket's own order: no key comes twice.
    """

    def __init__(self, found: Sorted, seed: int) -> None:
        super().__init__(len(found.of), seed)
        self._batch = found.together
        counts = found.counts()
        self._members = [np.flatnonzero(found.of == bucket) for bucket in np.flatnonzero(counts).tolist()]
        self._counts = counts[counts > 0]
        self._orders = [Order(len(own), mix(seed, _WITHIN, number)) for number, own in enumerate(self._members)]
        self._drawn: dict[int, tuple[NDArray[np.int64], NDArray[np.int64]]] = {}

    def _before(self, epoch: int) -> NDArray[np.int64]:
        """Batches that each bucket has given before an epoch."""
        return (2 * epoch * self._counts + self._batch) // (2 * self._batch)

    def _steps(self, epoch: int) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
        """Of each batch of an epoch the bucket, and its number among all that the bucket gives."""
        found = self._drawn.get(epoch)
        if found is None:
            before, after = self._before(epoch), self._before(epoch + 1)
            buckets = np.repeat(np.arange(len(before)), after - before)
            numbers = np.concatenate([np.arange(first, last) for first, last in zip(before, after, strict=True)])
            shuffled = permutation(len(buckets), mix(self.seed, _STEPS), epoch)
            while len(self._drawn) > 1:
                del self._drawn[next(iter(self._drawn))]
            found = self._drawn[epoch] = buckets[shuffled], numbers[shuffled]
        return found

    def _epoch_of(self, batch: int) -> int:
        """The epoch of a batch: the first before whose end more batches were given."""
        low, high = 0, (batch + 1 + len(self._counts)) * self._batch // self.n + 1
        while low < high:
            middle = (low + high) // 2
            if int(self._before(middle + 1).sum()) > batch:
                high = middle
            else:
                low = middle + 1
        return low

    def at(self, position: int) -> Key:
        return self.slice(position, position + 1)[0]

    def slice(self, start: int, stop: int) -> list[Key]:
        found: list[Key] = []
        while start < stop:
            batch, place = divmod(start, self._batch)
            count = min(stop - start, self._batch - place)
            epoch = self._epoch_of(batch)
            buckets, numbers = self._steps(epoch)
            step = batch - int(self._before(epoch).sum())
            bucket, first = int(buckets[step]), int(numbers[step]) * self._batch + place
            own = self._members[bucket]
            found += [(again, int(own[index])) for again, index in self._orders[bucket].slice(first, first + count)]
            start += count
        return found
