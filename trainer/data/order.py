"""The order of samples: pure functions of (seed, epoch, position), so that a run can stop and go on anywhere."""

from __future__ import annotations

import hashlib
from itertools import accumulate, pairwise

import numpy as np
from numpy.typing import NDArray

from trainer.config.arithmetic import micro_batches, rank_shares

Key = tuple[int, int]


def mix(*values: int) -> int:
    """63 well-mixed bits of any whole numbers: BLAKE2b (RFC 7693) of their decimal text.

    Every bit of the result depends on every value, so neighbouring seeds, epochs and samples share nothing; the same in
    every process, on every machine and in every version.
    """
    text = ",".join(map(str, values)).encode()
    return int.from_bytes(hashlib.blake2b(text, digest_size=8).digest(), "little") >> 1


_LINE = 0x6C696E65  # keeps the draws of a weighted order's line apart
_GOLDEN = 0.6180339887498949


def permutation(n: int, seed: int, epoch: int) -> NDArray[np.int64]:
    """0 … n-1 sorted by the SplitMix64 hash (Steele, Lea, Flood 2014) of each, keyed by (seed, epoch).

    numpy's own permutation may change between its versions (NEP 19), and a resumed run must not change its order.
    """
    x = np.arange(1, n + 1, dtype=np.uint64) * np.uint64(0x9E3779B97F4A7C15) + np.uint64(mix(seed, epoch))
    for shift, factor in ((30, 0xBF58476D1CE4E5B9), (27, 0x94D049BB133111EB)):
        x ^= x >> np.uint64(shift)
        x *= np.uint64(factor)
    x ^= x >> np.uint64(31)
    return np.argsort(x, kind="stable").astype(np.int64, copy=False)


class Order:
    """The endless stream of training positions: epoch `p // n` is a permutation drawn from (seed, epoch) alone.

    Global batch k is the positions [k*G, (k+1)*G): every batch is full, and an epoch may end inside one. `held`: how many epochs
    are kept, so many as are looked into by turns.
    """

    def __init__(self, n: int, seed: int, held: int = 2) -> None:
        if n < 1:
            raise ValueError("an order needs at least one sample")
        self.n = n
        self.seed = seed
        self._held = held
        self._epochs: dict[int, NDArray[np.int64]] = {}

    def _epoch(self, epoch: int) -> NDArray[np.int64]:
        found = self._epochs.get(epoch)
        if found is None:
            while len(self._epochs) >= self._held:
                del self._epochs[next(iter(self._epochs))]
            found = self._epochs[epoch] = permutation(self.n, self.seed, epoch)
        return found

    def at(self, position: int) -> tuple[int, int]:
        """(epoch, index of the sample) at a position."""
        epoch, place = divmod(position, self.n)
        return epoch, int(self._epoch(epoch)[place])

    def slice(self, start: int, stop: int) -> list[tuple[int, int]]:
        """`at` of the positions start … stop-1."""
        found: list[tuple[int, int]] = []
        while start < stop:
            epoch, place = divmod(start, self.n)
            count = min(stop - start, self.n - place)
            found += [(epoch, index) for index in self._epoch(epoch)[place : place + count].tolist()]
            start += count
        return found


class WeightedOrder(Order):
    """An order in which sample i comes `rates[i]` times an epoch on average (sum n): floor or ceiling of it in each epoch.

    Systematic resampling (Kitagawa 1996) of the samples laid in a line class by class: each class, too, comes exactly as often
    as it should, to within one. The offset moves by the golden ratio from epoch to epoch, which goes through the samples of a
    class that comes seldom as evenly as can be. A repetition k within an epoch is told apart by its key: epoch + k * 2**32.
    """

    def __init__(self, rates: NDArray[np.float64], labels: NDArray[np.int64], seed: int) -> None:
        super().__init__(len(rates), seed)
        drawn = permutation(self.n, mix(seed, _LINE), 0)
        self._line = drawn[np.argsort(labels[drawn], kind="stable")]
        ends = np.cumsum(np.asarray(rates, dtype=np.float64)[self._line])
        # whole numbers that the sums missed by rounding would move a sample from one class to the next
        near = np.rint(ends)
        self._ends = np.where(np.abs(ends - near) < 1e-6, near, ends)
        self._ends[-1] = self.n
        self._start = mix(seed, _LINE, 1) / 2**63
        self._keys: dict[int, NDArray[np.int64]] = {}

    def _epoch(self, epoch: int) -> NDArray[np.int64]:
        found = self._epochs.get(epoch)
        if found is None:
            offset = (self._start + epoch * _GOLDEN) % 1.0
            counts = np.diff(np.floor(self._ends + offset), prepend=0.0).astype(np.int64)
            chosen = np.repeat(self._line, counts)
            again = np.arange(self.n) - np.repeat(np.cumsum(counts) - counts, counts)
            shuffled = permutation(self.n, self.seed, epoch)
            while len(self._epochs) > 1:
                oldest = next(iter(self._epochs))
                del self._epochs[oldest], self._keys[oldest]
            found = self._epochs[epoch] = chosen[shuffled]
            self._keys[epoch] = epoch + (again[shuffled] << 32)
        return found

    def at(self, position: int) -> Key:
        epoch, place = divmod(position, self.n)
        index = int(self._epoch(epoch)[place])
        return int(self._keys[epoch][place]), index

    def slice(self, start: int, stop: int) -> list[Key]:
        return [self.at(position) for position in range(start, stop)]


def share(global_batch: int, rank: int, world: int, micro: int) -> list[range]:
    """A rank's part of a global batch, as offsets into it, cut into micro-batches of at most `micro` samples, as many on every
    rank (one less where a part has no samples left for it).

    The parts are contiguous in rank order. Raises UserError when a rank would have none.
    """
    if micro < 1 or not 0 <= rank < world:
        raise ValueError(f"rank {rank} of {world}, micro-batch {micro}")
    shares = rank_shares(global_batch, world)
    passes = len(micro_batches(shares[0], micro))
    cuts = list(accumulate(micro_batches(shares[rank], micro, passes=passes), initial=sum(shares[:rank])))
    return [range(a, b) for a, b in pairwise(cuts)]
