"""Reads the tensors of a checkpoint, whoever wrote them: one file with all of each, or a file a rank with pieces of each."""

from __future__ import annotations

import json
import math
import re
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open

from trainer.config import RefusedError

_PART = re.compile(r"(.+)\.(\d{5})-of-(\d{5})\.safetensors")


def part(name: str, rank: int, world: int) -> str:
    """The name of a rank's file."""
    return f"{name.removesuffix('.safetensors')}.{rank:05d}-of-{world:05d}.safetensors"


def read(folder: Path) -> dict[str, Tensors]:
    """The tensors of a checkpoint by the name that their file has, or would have in one: `model.safetensors`."""
    found: dict[str, list[Path]] = {}
    for path in sorted(folder.glob("*.safetensors")):
        match = _PART.fullmatch(path.name)
        found.setdefault(f"{match[1]}.safetensors" if match else path.name, []).append(path)
    return {name: Tensors(paths) for name, paths in found.items()}


def averaged(folder: Path) -> dict[str, torch.Tensor]:
    """The network of a checkpoint; the averaged weights, where the run kept an average, stand for those that learnt."""
    files = read(folder)
    average = files.get("model-average.safetensors")
    return files["model.safetensors"].whole() | ({} if average is None else average.whole())


@dataclass(frozen=True)
class _Place:
    """Where values of a tensor are: `count` of them from place `start` on; all of them, in their own shape, where `shape` is
    none."""

    file: int
    start: int
    count: int
    shape: tuple[int, ...] | None


class Tensors:
    """Tensors by name, read when they are asked for, on the CPU: of a piece only its own bytes."""

    def __init__(self, paths: Iterable[Path] = ()) -> None:
        self._files: list[Any] = [safe_open(path, "pt") for path in paths]
        self._places: dict[str, list[_Place]] = {}
        for number, file in enumerate(self._files):
            pieces: dict[str, list[int]] = json.loads((file.metadata() or {}).get("pieces", "{}"))
            for name in file.keys():  # noqa: SIM118 (it is no dict)
                start, *shape = pieces.get(name, (0,))
                size = file.get_slice(name).get_shape()
                place = _Place(number, start, math.prod(size), tuple(shape) if name in pieces else None)
                self._places.setdefault(name, []).append(place)
        for places in self._places.values():
            places.sort(key=lambda place: place.start)

    @property
    def names(self) -> list[str]:
        """All names."""
        return list(self._places)

    def __contains__(self, name: str) -> bool:
        return name in self._places

    def get(self, name: str) -> torch.Tensor | None:
        """A tensor, none where there is no such name."""
        if name not in self:
            return None
        return self[name]

    def shape(self, name: str) -> tuple[int, ...]:
        """The shape of a tensor."""
        place = self._places[name][0]
        return tuple(self._files[place.file].get_slice(name).get_shape()) if place.shape is None else place.shape

    def __getitem__(self, name: str) -> torch.Tensor:
        """A tensor, put together where it is in pieces."""
        place = self._places[name][0]
        if place.shape is None:
            found: torch.Tensor = self._files[place.file].get_tensor(name)
            return found
        return self.piece(name, 0, math.prod(place.shape)).view(place.shape)

    def piece(self, name: str, start: int, count: int) -> torch.Tensor:
        """`count` values of a tensor from place `start` on, [count]. Raises RefusedError where a rank's file is not there."""
        places = self._places[name]
        if places[0].shape is None:
            return self._rows(places[0], name, start, count)
        parts, at = [], start
        for place in places:
            here = min(place.start + place.count, start + count) - at
            if place.start <= at and here > 0:
                within = at - place.start
                parts.append(self._files[place.file].get_slice(name)[within : within + here])
                at += here
        if at < start + count:
            raise RefusedError(f"the checkpoint has only a part of '{name}': a file is missing")
        return torch.cat(parts) if parts else torch.empty(0)

    def _rows(self, place: _Place, name: str, start: int, count: int) -> torch.Tensor:
        """Of a tensor that is whole, read no more than the rows that the values lie in."""
        view = self._files[place.file].get_slice(name)
        shape = view.get_shape()
        if len(shape) < 2 or count == 0:
            flat: torch.Tensor = self._files[place.file].get_tensor(name).reshape(-1)
            return flat[start : start + count]
        size = math.prod(shape[1:])
        first = start // size
        rows: torch.Tensor = view[first : -(-(start + count) // size)]
        return rows.reshape(-1)[start - first * size :][:count]

    def whole(self) -> dict[str, torch.Tensor]:
        """All of them."""
        return {name: self[name] for name in self._places}
