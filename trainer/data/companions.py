"""Samples that each have a companion of another data set, which is a pure function of the seed and the sample's key."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

from trainer.data.batch import Batch
from trainer.data.loader import Samples
from trainer.data.order import Key, Order, mix

_LINE = 0x7072696F72  # keeps the order of the companions apart
_EPOCH = 0xFFFFFFFF  # the part of a key that says the epoch; above it is the repetition within it


class Accompanied:
    """The samples of a training, each with one of what a generator knew before beside it, as `Batch.prior`.

    The companions stand in a line drawn from the seed, and the samples of epoch after epoch, in the order of their listing, take
    them in turn: in a plain order each companion comes as often as any other, to within one. A companion's key is how often the
    line was gone through, and its place in its own listing, so that its noise and its augmentation are new each time.
    """

    def __init__(self, samples: Samples, companions: Samples, seed: int) -> None:
        self._samples, self._companions = samples, companions
        line = Order(len(companions), mix(seed, _LINE)).slice(0, len(companions))
        self._line = [index for _, index in line]

    @property
    def cheap(self) -> bool:
        return self._samples.cheap and self._companions.cheap

    def __len__(self) -> int:
        return len(self._samples)

    def order(self, seed: int) -> Order:
        """That of the samples."""
        return self._samples.order(seed)

    def fetch(self, keys: Sequence[Key]) -> Batch:
        """The samples of (epoch, index) keys, and their companions."""
        batch = self._samples.fetch(keys)
        prior = self._companions.fetch([self.companion(key) for key in keys])
        return replace(batch, prior=prior, bad=batch.bad + prior.bad)

    def companion(self, key: Key) -> Key:
        """The key of a sample's companion; a repetition of the sample within its epoch takes the same one with other noise."""
        epoch, index = key
        turn, place = divmod((epoch & _EPOCH) * len(self._samples) + index, len(self._line))
        return turn + (epoch & ~_EPOCH), self._line[place]
