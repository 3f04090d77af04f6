"""Images decoded once: kept as uint8 of any size, as they are before chance changes them, and read from mapped files."""

from __future__ import annotations

import logging
import resource
import struct
import time
from collections.abc import Callable, Mapping, Sequence
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

import trainer.data
from trainer.config import GraftError, RefusedError, Run, UserError
from trainer.config.sources import Listing
from trainer.data import Batch, ImageDataset, transforms
from trainer.data.dataset import BadCount
from trainer.data.images import BadImageError
from trainer.data.order import Key, Order
from trainer.data.pairs import way_of
from trainer.features import fill, identity
from trainer.features.identity import Ids
from trainer.features.keeper import Complete, Keeper, NotKeptError
from trainer.features.store import Store
from trainer.runtime import Runtime
from trainer.spec import InputSpec

log = logging.getLogger("graft.features")
FORMAT = 1
_HEADER = struct.Struct("<8sQQ40x")  # mark, pictures, bytes of their pixels
_MARK = b"graftpic"
_HEAD = 8  # bytes before the pixels of a picture on its way: its height and its width
# Settings of `data` that decide what is kept.
_DECIDES = ("resize", "resize_to", "interpolation", "decoder")


class PictureStore(Store):
    """Files of pictures [channels, h, w]: a header, ids [n, 2], heights and widths [n, 2], then all pixels."""

    def __init__(self, folder: Path, channels: int) -> None:
        super().__init__(folder, 0)
        self._channels = channels
        self._sizes: dict[str, NDArray[np.int64]] = {}

    def _ids(self, path: Path) -> Ids | None:
        try:
            with path.open("rb") as file:
                mark, count, pixels = _HEADER.unpack(file.read(_HEADER.size))
                start = _start(count)
                if mark != _MARK or path.stat().st_size != start + pixels:
                    return None
                ids = np.frombuffer(file.read(16 * count), dtype="<u8").reshape(-1, 2)
                sizes = np.frombuffer(file.read(8 * count), dtype="<u4").reshape(-1, 2).astype(np.int64)
        except (OSError, struct.error, ValueError):
            return None
        if int(sizes.prod(axis=1).sum()) * self._channels != pixels:
            return None
        self._sizes[path.name] = sizes
        return ids

    def write(self, ids: Ids, parts: Sequence[torch.Tensor]) -> str:
        """Add pictures, rows of parts as `Decoding` makes them, with their ids [n, 2]; the file's name. Raises OSError."""
        sizes, pixels = list[NDArray[np.int64]](), list[torch.Tensor]()
        for row in (row for part in parts for row in part):
            size = row[:_HEAD].numpy().view("<u4").astype(np.int64)
            sizes.append(size)
            pixels.append(row[_HEAD : _HEAD + int(size.prod()) * self._channels])
        shapes = np.stack(sizes)
        content = torch.cat(pixels)
        header = _HEADER.pack(_MARK, len(ids), len(content)) + np.ascontiguousarray(ids).astype("<u8").tobytes()
        header += shapes.astype("<u4").tobytes()
        name = self._put(header + bytes(_start(len(ids)) - len(header)), content)
        self._sizes[name] = shapes
        return name

    def pictures(self, name: str) -> tuple[NDArray[np.uint8], NDArray[np.int64], NDArray[np.int64]]:
        """The pixels of a file, mapped; where each picture begins [n], and its height and width [n, 2]. Raises OSError."""
        sizes = self._sizes[name]
        lengths = sizes.prod(axis=1) * self._channels
        # "c": a mapping that may be written to, as torch wants it, and that reaches no file
        mapped = np.memmap(self.folder / name, np.uint8, "c", _start(len(sizes)), (int(lengths.sum()),))
        return np.asarray(mapped), np.cumsum(lengths) - lengths, sizes


def _start(count: int) -> int:
    return -(-(_HEADER.size + 24 * count) // 64) * 64


class Decoding:
    """Images as they are kept, in a row each: height and width, the pixels, and nothing up to the largest of the batch."""

    cheap, train = False, False

    def __init__(self, dataset: ImageDataset, before: transforms.Transform) -> None:
        self._dataset, self._before = dataset, before

    def __len__(self) -> int:
        return len(self._dataset)

    def order(self, seed: int) -> Order:
        """That of the data set."""
        return self._dataset.order(seed)

    def fetch(self, keys: Sequence[Key]) -> Batch:
        """The images of (anything, index) keys."""
        found, indices, bad = list[torch.Tensor](), list[int](), list[tuple[str, str]]()
        for _, index in keys:
            try:
                found.append(self._before(self._dataset.read(index)))
                indices.append(index)
            except BadImageError as error:
                bad.append((error.path, error.reason))
        rows = torch.zeros(len(found), _HEAD + max((image.numel() for image in found), default=0), dtype=torch.uint8)
        for row, image in zip(rows, found, strict=True):
            row[:_HEAD] = torch.from_numpy(np.array(image.shape[1:], dtype="<u4").view(np.uint8))
            row[_HEAD : _HEAD + image.numel()] = image.reshape(-1)
        return Batch(rows, torch.zeros(len(found), dtype=torch.int64), torch.tensor(indices, dtype=torch.int64), bad)


class KeptReader:
    """Reads images that are kept, by the keys of a listing; with so many files mapped as this process may well hold open.

    Raises OSError where one of its files is not there from the start: then no rank goes on.
    """

    def __init__(self, listing: Listing, found: Complete) -> None:
        assert isinstance(found.store, PictureStore)
        self._store, self._names = found.store, found.names
        self._place = {item.key: index for index, item in enumerate(listing.items)}
        self._which, self._row, self._bad = found.which, found.row, found.bad
        self._files: dict[int, tuple[NDArray[np.uint8], NDArray[np.int64], NDArray[np.int64]]] = {}
        self._most = max(16, resource.getrlimit(resource.RLIMIT_NOFILE)[0] // 8)
        for which in sorted(set(found.which.tolist()) - {-1})[: self._most]:
            self._file(which)

    def read(self, key: str, channels: int, max_pixels: int) -> torch.Tensor:
        """uint8 [channels, h, w]. Raises BadImageError for one that could not be decoded, GraftError for a file that went."""
        index = self._place[key]
        which = int(self._which[index])
        if which < 0:
            raise BadImageError(*self._bad[index])
        try:
            pixels, starts, sizes = self._files.get(which) or self._file(which)
        except OSError as error:
            where = self._store.folder / self._names[which]
            raise GraftError(f"{where}: {error.strerror}; was it removed while this run reads it? Start the run again") from None
        row = int(self._row[index])
        height, width = sizes[row].tolist()
        start = int(starts[row])
        return torch.from_numpy(pixels[start : start + channels * height * width]).view(channels, height, width)

    def _file(self, which: int) -> tuple[NDArray[np.uint8], NDArray[np.int64], NDArray[np.int64]]:
        found = self._store.pictures(self._names[which])
        if len(self._files) >= self._most:
            del self._files[next(iter(self._files))]  # the one that was mapped first
        self._files[which] = found
        return found


class Decoded(Keeper):
    """The images of a run, kept as `data.cache: decoded` has it."""

    _plural = "images"

    def __init__(self, run: Run, runtime: Runtime, spec: InputSpec) -> None:
        side = run.data.cache.side or run.data.resize_to or spec.image_size
        super().__init__(run, runtime, spec.in_channels * side * side)
        self._spec = spec
        self._readers: dict[tuple[int, bool], KeptReader] = {}

    def open(
        self, datasets: Sequence[ImageDataset], bad: BadCount, *, at: Callable[[str], None], stop: Callable[[], bool]
    ) -> bool:  # fmt: skip
        """Find or decode the images of these data sets; false where a wish to stop came between. Raises RefusedError where they
        cannot be kept, and UserError for what the data sets would raise it for.
        """
        self._at, self._stop = at, stop
        began = time.monotonic()
        try:
            for dataset in datasets:
                before = transforms.kept(self._run.data, self._spec, train=dataset.train)
                found = self._complete(Decoding(dataset, before), 1, lambda: self._named(dataset), bad)  # noqa: B023 (called at once)
                if found is None:
                    return False
                listing = dataset.listing
                reader = self._together(lambda: KeptReader(listing, found))  # noqa: B023
                self._readers[id(listing), dataset.train] = reader
        except NotKeptError as problem:
            raise RefusedError(f"data.cache: decoded, and images cannot be kept: {problem}; or write data.cache: none") from None
        log.info("decoded images: ready after %.1f s", time.monotonic() - began)
        return True

    def serve(self, dataset: ImageDataset) -> None:
        """Have a data set read what is kept of its listing, if anything is."""
        reader = self._readers.get((id(dataset.listing), dataset.train))
        if reader is not None:
            dataset.keep(reader)

    def _named(self, dataset: ImageDataset) -> tuple[dict[str, Any], Ids]:
        return description(self._run, self._spec, train=dataset.train), identity.samples(dataset.listing)

    @property
    def _what(self) -> str:
        return "images decoded and resized"

    def _told(self, about: dict[str, Any]) -> str:
        return f"decoded images, {about['decoded']}"

    def _new(self, folder: Path) -> Store:
        return PictureStore(folder, self._spec.in_channels)

    def _compute(self) -> fill.Compute:
        return lambda batch: batch.images


def description(run: Run, spec: InputSpec, *, train: bool) -> dict[str, Any]:
    """All that decides the pixels that are kept, as JSON; the same for training and validation where both are cut alike."""
    crop = run.data.augment.crop if train else "none"
    side = run.data.cache.side if crop == "resized" else run.data.resize_to or spec.image_size
    kept = f"short side {side}" if crop in ("random", "resized") else f"{spec.image_size} x {spec.image_size} of {side}"
    return {
        "format": FORMAT,
        "decoded": kept,
        "larger": crop == "resized",  # smaller images stay as they are
        "image": [spec.in_channels, spec.image_size, spec.interpolation],
        "data": run.data.model_dump(mode="json", include=set(_DECIDES)),
        "versions": {name: version(name) for name in ("torch", "torchvision", "pillow", "numpy")},
        "reading": identity.content(
            Path(trainer.data.__file__).with_name(name) for name in ("images.py", "transforms.py", "readers.py")
        ),
    }


def granted(run: Run, listings: Mapping[str, Listing | None]) -> None:
    """Raises UserError where decoded images are asked for and there is nothing to decode, or more than one image a sample."""
    if run.data.cache.kind != "decoded":
        return
    if run.task.translates or way_of(run) is not None:
        raise UserError(
            f"data.cache: decoded keeps single images, and a sample of this task {run.task.kind} is two; write data.cache: none"
        )
    for key, listing in listings.items():
        if listing is not None and (listing.scheme == "digits" or "pixels" in listing.how):
            raise UserError(f"data.cache: decoded, and data.{key} ({listing.scheme}:) is in memory, decoded; leave cache out")
