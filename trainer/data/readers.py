"""How the bytes of a sample are read, by the scheme of its listing; safe to be used in forked loader workers.

Files are read by `pread`, or mapped, which keeps no position that processes would share; nothing opened travels in a pickle.
"""

from __future__ import annotations

import os
from collections import OrderedDict
from collections.abc import Callable
from typing import Any, Protocol

import torch

from trainer.config.errors import UserError
from trainer.config.sources import Listing
from trainer.data import images

_OPEN = 64  # shards that are held open


class Reader(Protocol):
    """Reads samples by key."""

    def read(self, key: str, channels: int, max_pixels: int) -> torch.Tensor:
        """uint8 [channels, h, w]. Raises BadImageError."""


class FileReader(Reader, Protocol):
    """Reads samples as they came."""

    def sides(self, key: str) -> tuple[int, int]:
        """Height and width as the file's header says them, upright; nothing is decoded. Raises BadImageError."""


def reader(listing: Listing, decoder: images.Decoder = "pillow") -> FileReader:
    """The reader of a listing's scheme; nothing is opened yet."""
    if "pixels" in listing.how:
        return _Arrays(listing)
    kinds: dict[str, Callable[[Listing, images.Decoder], FileReader]] = {"hf": _Rows, "webdataset": _Members}
    return kinds.get(listing.scheme, _Files)(listing, decoder)


class _Files:
    """Files below the root."""

    def __init__(self, listing: Listing, decoder: images.Decoder) -> None:
        self._root, self._decoder = listing.root, decoder

    def read(self, key: str, channels: int, max_pixels: int) -> torch.Tensor:
        return images.read(os.path.join(self._root, key), channels, max_pixels, self._decoder)  # noqa: PTH118

    def sides(self, key: str) -> tuple[int, int]:
        return images.sides(os.path.join(self._root, key))  # noqa: PTH118


class _Members:
    """Members of tar shards."""

    def __init__(self, listing: Listing, decoder: images.Decoder) -> None:
        self._root, self._places, self._decoder = listing.root, listing.how["places"], decoder
        self._open: OrderedDict[str, int] = OrderedDict()

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_open": OrderedDict()}

    def read(self, key: str, channels: int, max_pixels: int) -> torch.Tensor:
        return images.decode(*self._bytes(key), channels, max_pixels, self._decoder)

    def sides(self, key: str) -> tuple[int, int]:
        return images.sides_of(*self._bytes(key))

    def _bytes(self, key: str) -> tuple[bytes, str]:
        """A member, and its name in messages."""
        shard, offset, size = self._places[key]
        path = os.path.join(self._root, shard)  # noqa: PTH118
        name = f"{path}: {key}"
        try:
            data = os.pread(self._descriptor(path), size, offset)
        except OSError as error:
            raise images.BadImageError(name, error.strerror or "cannot be read") from None
        if len(data) < size:
            raise images.BadImageError(name, "truncated: the shard ends inside it")
        return data, name

    def _descriptor(self, path: str) -> int:
        found = self._open.get(path)
        if found is None:
            if len(self._open) >= _OPEN:
                os.close(self._open.popitem(last=False)[1])
            found = self._open[path] = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
        else:
            self._open.move_to_end(path)
        return found

    def __del__(self, close: Any = os.close) -> None:  # bound: at the end of the program the module may be gone
        for descriptor in self._open.values():
            close(descriptor)


class _Rows:
    """Rows of Arrow files, mapped."""

    def __init__(self, listing: Listing, decoder: images.Decoder) -> None:
        self._root, self._column, self._decoder = listing.root, listing.how["image"], decoder
        self._tables: dict[str, Any] = {}

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_tables": {}}

    def read(self, key: str, channels: int, max_pixels: int) -> torch.Tensor:
        found, name = self._found(key)
        if isinstance(found, str):
            return images.read(self._root / found, channels, max_pixels, self._decoder)
        return images.decode(found, name, channels, max_pixels, self._decoder)

    def sides(self, key: str) -> tuple[int, int]:
        found, name = self._found(key)
        return images.sides(self._root / found) if isinstance(found, str) else images.sides_of(found, name)

    def _found(self, key: str) -> tuple[bytes | str, str]:
        """The image of a row, or the file that it names; and its name in messages."""
        from trainer.config.formats import arrow

        file, _, row = key.rpartition(":")
        path = self._root / file
        name = f"{path}, row {row}"
        if file not in self._tables:
            self._tables[file] = arrow.images(path, self._column)
        try:
            data, other = arrow.image(self._tables[file], int(row))
        except (IndexError, UserError) as error:
            raise images.BadImageError(name, f"cannot be read: {error}") from None
        if data is not None:
            return data, name
        if other is None:
            raise images.BadImageError(name, "has no image")
        return other, name


class _Arrays:
    """Arrays of pixels, held in memory."""

    def __init__(self, listing: Listing) -> None:
        self._pixels = listing.how["pixels"]()
        self._root = listing.root

    def read(self, key: str, channels: int, max_pixels: int) -> torch.Tensor:
        return images.of_array(self._pixels[int(key.rpartition(":")[2])], f"{self._root}: {key}", channels)

    def sides(self, key: str) -> tuple[int, int]:
        height, width, *_ = self._pixels[int(key.rpartition(":")[2])].shape
        return int(height), int(width)
