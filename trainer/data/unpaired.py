"""Pictures of two classes that do not belong together, as one: a sample is a picture of either with one of the other beside it.

uint8 [n, channels of the first class + channels of the second, size, size]. Which one stands beside it is a function of (seed,
epoch, sample): of a class it goes through all in an order drawn anew each time, so that each comes as often as any other.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import torch

from trainer.config.data import Uniform
from trainer.config.errors import UserError
from trainer.config.run import Data, Run
from trainer.config.sampling import rates
from trainer.config.sources import Listing
from trainer.config.tasks.cycle import Config
from trainer.data import images, transforms
from trainer.data.batch import Batch
from trainer.data.dataset import ImageDataset
from trainer.data.order import Key, Order, mix
from trainer.spec import InputSpec

_HELD = 1 << 24  # numbers of an order that are held at most
BESIDE = 7  # the stream of which picture stands beside which, and of what is drawn for it


class UnpairedDataset:
    """The pictures of both classes of a listing; see `ImageDataset`, whose order and augmentations they have.

    The first class is what pictures are made of. In an evaluation there is nothing beside a picture.
    """

    def __init__(self, listing: Listing, data: Data, task: Config, spec: InputSpec, *, train: bool, seed: int) -> None:
        self.listing, self.train, self.seed = listing, train, seed
        if spec.in_channels not in (1, 3):
            raise UserError(f"model.adapt.in_channels is {spec.in_channels}: a picture has 1 channel or 3; write one of them")
        self._channels = (spec.in_channels, task.channels)
        self._all = ImageDataset(listing, data, spec, train=train, seed=seed)
        self._places = [[place for place, item in enumerate(listing.items) if item.label == label] for label in (0, 1)]
        for name, places in zip(listing.classes, self._places, strict=True):
            if not places:
                raise UserError(f"{listing.root}: no picture of '{name}' is left, and task cycle goes between two classes")
        self._rank = {place: rank for places in self._places for rank, place in enumerate(places)}
        plain = data.model_copy(update={"sampling": Uniform()})
        self._sides = []
        for places, channels in zip(self._places, self._channels, strict=True):
            own = replace(listing, items=tuple(listing.items[place] for place in places))
            half = (0.5,) * channels
            of = replace(spec, in_channels=channels, mean=half, std=half)
            self._sides.append(ImageDataset(own, plain, of, train=train, seed=seed))
        self._repeats = self._most(rates(listing, data) if train else None)
        self._beside = [self._order_beside(label) for label in (0, 1)]

    def __len__(self) -> int:
        return len(self.listing.items)

    @property
    def cheap(self) -> bool:
        return all(side.cheap for side in self._sides)

    @property
    def held(self) -> list[torch.Tensor]:
        """What is held in memory of them."""
        return [kept for side in self._sides for kept in side.held]

    def order(self, seed: int) -> Order:
        """The order of training."""
        return self._all.order(seed)

    def _most(self, wanted: Sequence[float] | None) -> tuple[int, ...]:
        """How often a picture of each class comes in an epoch at most."""
        if wanted is None:
            return 1, 1
        rounding = 1e-6  # that of the rates' sums
        return tuple(max(1, math.ceil(max(wanted[place] for place in places) - rounding)) for places in self._places)

    def _order_beside(self, label: int) -> Order:
        """In what order pictures of a class stand beside those of the other; as much of it is held as an epoch of these takes."""
        count, other = len(self._places[label]), 1 - label
        epochs = math.ceil(self._repeats[other] * len(self._places[other]) / count) + 1
        return Order(count, mix(self.seed, BESIDE, label), held=max(2, min(epochs, _HELD // count)))

    def partner(self, key: Key) -> int:
        """Which of the other class, counted among its own, stands beside the picture of a key."""
        again, epoch = divmod(key[0], 1 << 32)  # which repetition within its epoch it is, see `WeightedOrder`
        own = self.listing.items[key[1]].label
        passes = epoch * self._repeats[own] + again
        return self._beside[1 - own].at(passes * len(self._places[own]) + self._rank[key[1]])[1]

    def fetch(self, keys: Sequence[Key]) -> Batch:
        """The samples of (epoch, index) keys, those of the first class first; `labels` says which of both each is of."""
        parts = [self._of(label, [key for key in keys if self.listing.items[key[1]].label == label]) for label in (0, 1)]
        joined = [torch.cat([getattr(part, name) for part in parts]) for name in ("images", "labels", "indices", "epochs")]
        pixels, labels, indices, epochs = joined
        return Batch(pixels, labels, indices, [bad for part in parts for bad in part.bad], epochs=epochs)

    def _of(self, label: int, keys: list[Key]) -> Batch:
        own = self._sides[label].plain([(epoch, self._rank[index]) for epoch, index in keys])
        beside = torch.zeros(len(own.images), self._channels[1 - label], *own.images.shape[2:], dtype=torch.uint8)
        bad = own.bad
        if self.train:
            # drawn for this place: neither as where it is a sample itself nor as beside another one
            wanted = [(mix(self.seed, BESIDE, *key), self.partner(key)) for key in keys]
            found = self._sides[1 - label].plain(wanted)
            beside, bad = found.images, [*bad, *found.bad]
        both = [own.images, beside] if label == 0 else [beside, own.images]
        indices = torch.tensor(self._places[label], dtype=torch.int64)[own.indices]
        return Batch(torch.cat(both, dim=1), torch.full_like(indices, label), indices, bad, epochs=own.epochs)


class Singles:
    """Reads pictures of one class as inputs of its way."""

    def __init__(self, run: Run, spec: InputSpec) -> None:
        self._channels, self._most = spec.in_channels, run.data.max_pixels
        self._fixed = transforms.evaluation(run.data, spec)

    def __call__(self, path: Path, index: int) -> torch.Tensor:
        """uint8 [c, size, size]. Raises BadImageError."""
        made: torch.Tensor = self._fixed(images.read(path, self._channels, self._most))
        return made
