"""Pairs of pictures as one: the channels of the input, then those of the target, uint8 [n, input + target, size, size].

What changes the place of a pixel is so the same for both. Where the input is made of the target, it is a function of (seed,
epoch, sample).
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import torch
from torch.nn import functional
from torchvision.transforms import InterpolationMode, v2

from trainer.config.errors import UserError
from trainer.config.pairs import Edges, Given, Grey, Masked, Side, Small
from trainer.config.run import Data, Run
from trainer.config.sources import Listing
from trainer.config.tasks.cycle import Config as Cycle
from trainer.config.tasks.translate import Config
from trainer.data import images, readers, transforms
from trainer.data.batch import Batch
from trainer.data.buckets import Sorted
from trainer.data.dataset import ImageDataset
from trainer.data.order import Key, Order, mix
from trainer.data.unpaired import UnpairedDataset
from trainer.pixels import coloured, luma
from trainer.spec import InputSpec

Way = Given | Side | Grey | Small | Edges | Masked
DERIVED = 5  # the stream of what is drawn for an input
_ASPECT = 0.02  # two pictures of a pair may differ by so much of their aspect, which is rounding
_GREY = 128


def dataset_of(
    run: Run, listing: Listing, spec: InputSpec, *, train: bool, buckets: Sorted | None = None
) -> ImageDataset | PairDataset | UnpairedDataset:  # fmt: skip
    """The samples of a run as they are loaded, for a network that takes `spec`, or sorted into buckets. Raises UserError."""
    way = way_of(run)
    if way is not None:
        return PairDataset(listing, run.data, way, made_by(run, spec), spec, train=train, seed=run.train.seed)
    if isinstance(run.task, Cycle):
        return UnpairedDataset(listing, run.data, run.task, spec, train=train, seed=run.train.seed)
    return ImageDataset(listing, run.data, spec, train=train, seed=run.train.seed, buckets=buckets)


def loaded(run: Run, spec: InputSpec) -> InputSpec:
    """How what is loaded is normalised: of two pictures the first as the network takes it, the second to [-1, 1]."""
    if way_of(run) is None and not isinstance(run.task, Cycle):
        return spec
    made = made_by(run, spec)
    half = (0.5,) * made
    return replace(spec, in_channels=spec.in_channels + made, mean=spec.mean + half, std=spec.std + half)


def way_of(run: Run) -> Way | None:
    """How the pairs of a run come; none where its samples are single pictures."""
    way: Way | None = getattr(run.task, "pairs", None)
    return way


def made_by(run: Run, spec: InputSpec) -> int:
    """Channels of the pictures that a run makes of pictures; a generator's are those that it is given."""
    return run.task.channels if isinstance(run.task, Config | Cycle) else spec.in_channels


class PairDataset:
    """The pairs of a listing; see `ImageDataset`, whose order and augmentations they have."""

    def __init__(
        self, listing: Listing, data: Data, way: Way, channels: int, spec: InputSpec, *, train: bool, seed: int
    ) -> None:  # fmt: skip
        self.listing, self.train, self.seed = listing, train, seed
        self._way, self._channels, self._given = way, channels, spec.in_channels
        _fits(way, spec.in_channels, channels)
        if way.derived:
            of = replace(spec, in_channels=channels, mean=(0.5,) * channels, std=(0.5,) * channels)
            self._inner = ImageDataset(listing, data, of, train=train, seed=seed)
        else:
            if listing.scheme == "digits":
                raise UserError("data.train: digits are single pictures; write task.pairs: small, edges or masked")
            both = spec.in_channels + channels
            of = replace(spec, in_channels=both, mean=(0.5,) * both, std=(0.5,) * both)
            reader = _Pairs(listing, data, spec.in_channels, channels, way)
            self._inner = ImageDataset(listing, data, of, train=train, seed=seed, reader=reader)

    def __len__(self) -> int:
        return len(self._inner)

    @property
    def cheap(self) -> bool:
        return self._inner.cheap and not self._way.derived

    @property
    def held(self) -> list[torch.Tensor]:
        """What is held in memory of them."""
        return self._inner.held

    def order(self, seed: int) -> Order:
        """The order of training."""
        return self._inner.order(seed)

    def fetch(self, keys: Sequence[Key]) -> Batch:
        """The pairs of (epoch, index) keys."""
        batch = self._inner.fetch(keys)
        if not self._way.derived:
            return batch
        made = torch.empty((len(batch.images), self._given + self._channels, *batch.images.shape[2:]), dtype=torch.uint8)
        generator = torch.Generator()
        for place, (epoch, index) in enumerate(zip(batch.epochs.tolist(), batch.indices.tolist(), strict=True)):
            generator.manual_seed(mix(self.seed, DERIVED, epoch, index))
            made[place, : self._given] = coloured(derive(self._way, batch.images[place], generator), self._given)
        made[:, self._given :] = batch.images
        return replace(batch, images=made)


def _fits(way: Way, given: int, made: int) -> None:
    """Raises UserError for channels that no input can be made with."""
    if given not in (1, 3):
        raise UserError(f"model.adapt.in_channels is {given}: a picture has 1 channel or 3; write one of them")
    if way.kind == "grey" and made == 1:
        raise UserError("task.pairs: grey, and task.channels is 1: there would be no colours to make; write channels: 3")


def derive(way: Way, image: torch.Tensor, generator: torch.Generator) -> torch.Tensor:
    """The input of a target, uint8 [1 or 3, h, w]."""
    if isinstance(way, Grey):
        return luma(image)
    if isinstance(way, Small):
        return _small(image, way)
    if isinstance(way, Edges):
        return _edges(image, way)
    assert isinstance(way, Masked)
    return _masked(image, way, generator)


def _small(image: torch.Tensor, way: Small) -> torch.Tensor:
    height, width = image.shape[-2:]
    less = [max(1, height // way.factor), max(1, width // way.factor)]
    small = v2.functional.resize(image, less, InterpolationMode.BICUBIC, antialias=True)
    made: torch.Tensor = v2.functional.resize(small, [height, width], InterpolationMode.BICUBIC, antialias=True)
    return made


def _edges(image: torch.Tensor, way: Edges) -> torch.Tensor:
    values = luma(image).float()[None] / 255
    reach = max(1, round(3 * way.blur))
    places = torch.arange(-reach, reach + 1, dtype=torch.float32)
    bell = (-0.5 * (places / way.blur) ** 2).exp()
    bell = bell / bell.sum()
    for kernel in (bell[:, None], bell[None, :]):
        pad = (kernel.shape[1] // 2,) * 2 + (kernel.shape[0] // 2,) * 2
        values = functional.conv2d(functional.pad(values, pad, mode="replicate"), kernel[None, None])
    across = torch.tensor([[1.0, 0.0, -1.0], [2.0, 0.0, -2.0], [1.0, 0.0, -1.0]]) / 4
    both = torch.stack([across, across.T])[:, None]
    slope = functional.conv2d(functional.pad(values, (1, 1, 1, 1), mode="replicate"), both).square().sum(dim=1).sqrt()
    return ((1 - way.gain * slope).clamp(0, 1) * 255).round().to(torch.uint8)


def _masked(image: torch.Tensor, way: Masked, generator: torch.Generator) -> torch.Tensor:
    _, height, width = image.shape
    made = image.clone()
    low, high = way.share
    for area, aspect, down, across in torch.rand(way.count, 4, generator=generator).tolist():
        share, ratio = low + area * (high - low), 2 ** (2 * aspect - 1)  # aspects from 1:2 to 2:1
        tall = min(height, max(1, round(height * (share * ratio) ** 0.5)))
        wide = min(width, max(1, round(width * (share / ratio) ** 0.5)))
        top, left = int(down * (height - tall + 1)), int(across * (width - wide + 1))
        made[:, top : top + tall, left : left + wide] = _GREY
    return made


class _Pairs:
    """Reads both pictures of a pair, one upon the other."""

    def __init__(self, listing: Listing, data: Data, given: int, made: int, way: Way) -> None:
        self._inner, self._root, self._targets = readers.reader(listing, data.decoder), listing.root, listing.targets_of
        self._given, self._made, self._way = given, made, way

    def read(self, key: str, channels: int, max_pixels: int) -> torch.Tensor:
        """uint8 [channels, h, w]. Raises BadImageError, for two pictures of another shape as well."""
        if isinstance(self._way, Side):
            whole = self._inner.read(key, max(self._given, self._made), max_pixels)
            if whole.shape[2] < 2 or whole.shape[2] % 2:
                raise images.BadImageError(self._name(key), f"{whole.shape[2]} pixels wide: no two pictures side by side")
            first, second = whole.chunk(2, dim=2)
            if self._way.at == "right":
                first, second = second, first
        else:
            first = self._inner.read(key, self._given, max_pixels)
            second = self._inner.read(self._targets[key], self._made, max_pixels)
        first, second = coloured(first, self._given), coloured(second, self._made)
        (high, wide), (tall, broad) = first.shape[1:], second.shape[1:]
        if abs(high * broad - tall * wide) > _ASPECT * max(high * broad, tall * wide):
            raise images.BadImageError(
                self._name(key), f"{wide} x {high} pixels, and its target {self._targets[key]} {broad} x {tall}: of another shape"
            )
        if first.shape[1:] != second.shape[1:]:
            first = v2.functional.resize(first, [tall, broad], InterpolationMode.BICUBIC, antialias=True)
        return torch.cat([first, second])

    def _name(self, key: str) -> str:
        return os.path.join(self._root, key)  # noqa: PTH118


class Inputs:
    """Reads pictures as inputs of a network: as they are, or `derived` from targets as in an evaluation."""

    def __init__(self, run: Run, spec: InputSpec, *, derived: bool) -> None:
        way = way_of(run)
        assert way is not None
        self._way, self._seed, self._most = way, run.train.seed, run.data.max_pixels
        self._given, self._derived = spec.in_channels, derived
        self._read = made_by(run, spec) if derived else 1 if self._way.kind == "grey" else spec.in_channels
        self._fixed = transforms.evaluation(run.data, replace(spec, in_channels=self._read))

    def __call__(self, path: Path, index: int) -> torch.Tensor:
        """uint8 [c, size, size] of the picture of this index, which what is drawn for it depends on. Raises BadImageError."""
        image = self._fixed(images.read(path, self._read, self._most))
        if self._derived:
            generator = torch.Generator().manual_seed(mix(self._seed, DERIVED, 0, index))
            image = derive(self._way, image, generator)
        return coloured(image, self._given)
