"""Samples by (epoch, index): decoded, transformed and stacked; a pure function of the seed and the key."""

from __future__ import annotations

import gzip
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace

import numpy as np
import torch

from trainer.config.errors import UserError
from trainer.config.run import Data
from trainer.config.sampling import rates
from trainer.config.sources import Listing
from trainer.data import images, readers, transforms
from trainer.data import mix as mixing
from trainer.data.batch import Batch
from trainer.data.buckets import BucketOrder, Sorted
from trainer.data.order import Key, Order, WeightedOrder, mix
from trainer.spec import InputSpec

_KEEP_BYTES = 64 << 20  # images held in memory are also held resized, up to this


class BadCount:
    """Counts the files that could not be read, each once, and stops the run when there are more than `max_bad`."""

    def __init__(self, max_bad: int) -> None:
        self.max_bad = max_bad
        self.bad: dict[str, str] = {}

    def add(self, bad: Sequence[tuple[str, str]]) -> None:
        """Raises UserError that names the file and the reason."""
        for path, reason in bad:
            self.bad.setdefault(path, reason)
            if len(self.bad) > self.max_bad:
                if self.max_bad:
                    count = f"{len(self.bad)} images cannot be read, more than data.max_bad {self.max_bad}; the last: "
                    raise UserError(f"{count}{path}: {reason}")
                raise UserError(f"{path}: {reason}; mend or remove it, or set data.max_bad to skip so many")


class ImageDataset:
    """The images of a listing as the network takes them, still uint8.

    `cheap`: no file is read (digits) and nothing is random, so that fetching is indexing. `buckets`: the sizes of the images; all
    that are fetched together have that of the first.
    """

    def __init__(
        self, listing: Listing, data: Data, spec: InputSpec, *, train: bool, seed: int, reader: readers.Reader | None = None,
        buckets: Sorted | None = None,
    ) -> None:  # fmt: skip
        self.listing = listing
        self.train = train
        self.seed = seed
        self._channels = spec.in_channels
        self._size = spec.image_size
        self._max_pixels = data.max_pixels
        self._max_bad = data.max_bad
        made = transforms.training if train else transforms.evaluation
        self._transforms = made(data, spec)
        self.buckets = buckets
        self._of_sides = {} if buckets is None else {sides: made(data, spec, sides) for sides in buckets.sizes}
        self._labels = torch.tensor([item.label for item in listing.items], dtype=torch.int64)
        said = None if listing.plain else [item.values for item in listing.items]
        self._values = None if said is None else torch.tensor(said, dtype=torch.float32)
        self._rates = rates(listing, data) if train else None
        self._mix = data.mix if train else None
        self._order = self.order(seed)
        self._reader = reader or readers.reader(listing, data.decoder)
        self._pixels: torch.Tensor | None = None
        self._fixed = self._transforms.fixed
        if listing.scheme == "digits":
            if spec.in_channels not in (1, 3, 4):
                raise UserError(f"digits have 1 channel (or 3 or 4, repeated), but model.adapt.in_channels is {spec.in_channels}")
            self._pixels = _digits(listing)
            if self._fixed is not None and len(listing.items) * spec.image_size**2 <= _KEEP_BYTES:
                self._pixels, self._fixed = self._fixed(self._pixels), None

    def __len__(self) -> int:
        return len(self.listing.items)

    @property
    def classes(self) -> tuple[str, ...]:
        return self.listing.classes

    @property
    def cheap(self) -> bool:
        return self._pixels is not None and self._transforms.random is None and self._mix is None

    def order(self, seed: int) -> Order:
        """The order of training, as often as `data.sampling` says; of buckets a batch is of one."""
        if self.buckets is not None:
            return BucketOrder(self.buckets, seed)
        if self._rates is None:
            return Order(len(self), seed)
        return WeightedOrder(np.array(self._rates), self._labels.numpy(), seed)

    def keep(self, reader: readers.Reader) -> None:
        """Read from here on images that were kept as `transforms.kept` leaves them."""
        self._reader = reader
        self._transforms = transforms.Transforms(None, self._transforms.random)

    def read(self, index: int) -> torch.Tensor:
        """The image of an index, as it is in its file. Raises BadImageError."""
        return self._reader.read(self.listing.items[index].key, self._channels, self._max_pixels)

    def fetch(self, keys: Sequence[Key]) -> Batch:
        """The samples of (epoch, index) keys, mixed with others as `data.mix` says; see `plain`."""
        if self._mix is None:
            return self.plain(keys)
        blends = [mixing.blend(self._mix, self._order, self.seed, key) for key in keys]
        first = self.plain(keys)
        mixed = [place for place, found in enumerate(blends) if found is not None]
        second = self.plain([found.partner for found in blends if found is not None])
        pixels = first.images.clone()
        targets = torch.nn.functional.one_hot(first.labels, len(self.classes)).float()
        for other, place in enumerate(mixed):
            found = blends[place]
            assert found is not None
            pixels[place], share = mixing.apply(found, first.images[place], second.images[other])
            targets[place] *= share
            targets[place, second.labels[other]] += 1 - share
        return replace(first, images=pixels, bad=first.bad + second.bad, targets=targets)

    def plain(self, keys: Sequence[Key]) -> Batch:
        """The samples of (epoch, index) keys as uint8 [n, c, size, size], or [n, c, h, w] of a bucket.

        A file that cannot be read is listed in `bad`; in training the next index that can be read takes its place, augmented
        as (epoch, its index) would be. Raises UserError when more than data.max_bad files in a row cannot be read.
        """
        if self._pixels is None:
            return self._fetch_files(keys)
        # numpy and index_select: a third of the time of torch.tensor and of indexing by a tensor
        epochs, indices = torch.from_numpy(np.array(keys, dtype=np.int64).reshape(-1, 2)).unbind(1)
        pixels = self._pixels.index_select(0, indices)
        if self._fixed is not None:
            pixels = self._fixed(pixels)
        if self._channels > 1:
            pixels = pixels.expand(-1, self._channels, -1, -1).contiguous()
            if self._channels == 4:
                pixels[:, 3] = 255  # opaque
        random = self._transforms.random
        if random is not None and len(keys):
            with _kept_state() as generator:
                changed = []
                for (epoch, index), image in zip(keys, pixels, strict=True):
                    generator.manual_seed(mix(self.seed, epoch, index))
                    changed.append(random(image))
            pixels = torch.stack(changed)
        return self.batch(pixels, epochs, indices, [])

    def batch(
        self, images: torch.Tensor, epochs: torch.Tensor, indices: torch.Tensor, bad: list[tuple[str, str]]
    ) -> Batch:  # fmt: skip
        """Images (or what stands in for them) of these keys with all else that is known of the samples."""
        values = None if self._values is None else self._values.index_select(0, indices)
        return Batch(images, self._labels.index_select(0, indices), indices, bad, values=values, epochs=epochs)

    @property
    def held(self) -> list[torch.Tensor]:
        """All images, where they are few and small enough to be kept in memory."""
        return [] if self._pixels is None else [self._pixels]

    @property
    def random(self) -> bool:
        """Whether an image is not the same in every epoch."""
        return self._transforms.random is not None or self._mix is not None

    def _fetch_files(self, keys: Sequence[Key]) -> Batch:
        kept: list[Key] = []
        bad: list[tuple[str, str]] = []
        sides, transform = (self._size, self._size), self._transforms
        if self.buckets is not None and len(keys):
            sides = self.buckets.size(keys[0][1])
            transform = self._of_sides[sides]
        pixels = torch.empty((len(keys), self._channels, *sides), dtype=torch.uint8)
        with _kept_state() as generator:
            for epoch, wanted in keys:
                found = self._read(wanted, bad)
                if found is None:
                    continue
                index, image = found
                generator.manual_seed(mix(self.seed, epoch, index))
                pixels[len(kept)] = transform(image)
                kept.append((epoch, index))
        epochs, indices = torch.tensor(kept, dtype=torch.int64).reshape(-1, 2).unbind(1)
        return self.batch(pixels[: len(kept)], epochs, indices, bad)

    def _read(self, wanted: int, bad: list[tuple[str, str]]) -> tuple[int, torch.Tensor] | None:
        """The image of an index, or in training of the next one that can be read."""
        before = len(bad)
        for step in range(len(self)):
            index = (wanted + step) % len(self)
            try:
                return index, self.read(index)
            except images.BadImageError as error:
                bad.append((error.path, error.reason))
                if not self.train:
                    return None
                if step > self._max_bad:  # one is for the caller to count; a long row of them need not be read to its end
                    BadCount(self._max_bad).add(bad[before:])
        raise UserError(f"{self.listing.root}: none of its {len(self)} images can be read; the last: {bad[-1][0]}: {bad[-1][1]}")


@contextmanager
def _kept_state() -> Iterator[torch.Generator]:
    """torch's default CPU generator, put back afterwards: loading in the training process must not disturb its dropout."""
    generator = torch.default_generator
    state = generator.get_state()
    try:
        yield generator
    finally:
        generator.set_state(state)


def _digits(listing: Listing) -> torch.Tensor:
    """The listing's rows as uint8 [n, 1, 8, 8], the 17 levels 0..16 spread over 0..255."""
    with gzip.open(listing.root, "rt", encoding="ascii") as file:
        lines = file.read().split()
    rows = [lines[int(item.key)].split(",")[:64] for item in listing.items]
    levels = np.array(rows, dtype=np.float32).reshape(-1, 1, 8, 8)
    return torch.from_numpy(np.rint(levels * np.float32(255 / 16)).astype(np.uint8))
