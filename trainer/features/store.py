"""A folder of features: files that never change, each with some rows and what they are of.

A file appears by one rename after all of it is on disk, and its name is the sha256 of its content. So an interrupted build
leaves whole files or none, whoever computes the same rows writes the same file, and damage shows. Whatever rows are not there
are computed when they are wanted.
"""

from __future__ import annotations

import contextlib
import fcntl
import hashlib
import json
import os
import secrets
import struct
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from trainer.faultpoints import reached
from trainer.features.identity import Ids
from trainer.rundir import write_atomically
from trainer.rundir.folder import fsync_folder

_HEADER = struct.Struct("<8sQQ40x")  # mark, rows, bytes a row; what follows begins at multiples of 64
_MARK = b"graftrow"
_BLOCK = 1 << 22


@dataclass(frozen=True)
class Segment:
    """A file of the folder: its name, and the ids of its rows."""

    name: str
    ids: Ids


class Store:
    """The folder of one key; `row`: bytes a row."""

    def __init__(self, folder: Path, row: int) -> None:
        self.folder, self._row = folder, row
        self._known: dict[str, Segment] = {}
        self._whole: set[str] = set()  # whose content was compared with their names

    def create(self, about: dict[str, Any]) -> None:
        """Make the folder, and say in it for people what it holds. Raises OSError."""
        self.folder.mkdir(parents=True, exist_ok=True)
        if not (self.folder / "about.json").exists():
            write_atomically(self.folder / "about.json", json.dumps(about, indent=1) + "\n")
        os.utime(self.folder)  # last used

    def names(self) -> list[str]:
        """The files that are there, in a fixed order."""
        return sorted(path.name for path in self.folder.glob("*.rows"))

    def read(self, names: Sequence[str]) -> list[Segment]:
        """The ids of these files' rows; what is no such file is left out."""
        for name in names:
            if name not in self._known and (ids := self._ids(self.folder / name)) is not None:
                self._known[name] = Segment(name, ids)
        return [self._known[name] for name in names if name in self._known]

    def _ids(self, path: Path) -> Ids | None:
        try:
            with path.open("rb") as file:
                mark, rows, row = _HEADER.unpack(file.read(_HEADER.size))
                if mark != _MARK or row != self._row or path.stat().st_size != _start(rows) + rows * row:
                    return None
                return np.frombuffer(file.read(16 * rows), dtype="<u8").reshape(-1, 2)
        except (OSError, struct.error, ValueError):
            return None

    def whole(self, name: str) -> bool:
        """Whether a file's content is what was written, to the last bit; read once."""
        if name in self._whole:
            return True
        try:
            with (self.folder / name).open("rb") as file:
                good = hashlib.file_digest(file, "sha256").hexdigest() == name.partition(".")[0]
        except OSError:
            return False
        if good:
            self._whole.add(name)
        return good

    def discard(self, name: str) -> None:
        """Remove a file that is damaged."""
        self._known.pop(name, None)
        self._whole.discard(name)
        (self.folder / name).unlink(missing_ok=True)

    def clean(self) -> None:
        """Remove what interrupted writes left, and files that are none of these. Only the one that holds the turn may."""
        known = {segment.name for segment in self.read(self.names())}
        for path in (*self.folder.glob(".tmp-*"), *self.folder.glob("*.rows")):
            if path.name not in known:
                path.unlink(missing_ok=True)

    def write(self, ids: Ids, parts: Sequence[torch.Tensor]) -> str:
        """Add rows, each part uint8 [n, bytes a row], with their ids [n, 2]; returns the file's name. Raises OSError."""
        header = _HEADER.pack(_MARK, len(ids), self._row) + np.ascontiguousarray(ids).astype("<u8").tobytes()
        return self._put(header + bytes(_start(len(ids)) - len(header)), torch.cat(list(parts)))

    def _put(self, header: bytes, rows: torch.Tensor) -> str:
        """A file of a header and bytes, under the name of its content."""
        content = memoryview(rows.contiguous().numpy().data).cast("B")
        digest = hashlib.sha256(header)
        temporary = self.folder / f".tmp-{secrets.token_hex(8)}"
        try:
            with temporary.open("wb", buffering=0) as file:
                _all(file.write, memoryview(header))
                reached("features-begun")
                for start in range(0, content.nbytes, _BLOCK):
                    digest.update(content[start : start + _BLOCK])
                    _all(file.write, content[start : start + _BLOCK])
                os.fsync(file.fileno())
            reached("features-synced")
            name = f"{digest.hexdigest()}.rows"
            temporary.rename(self.folder / name)
        except BaseException:
            with contextlib.suppress(OSError):
                temporary.unlink(missing_ok=True)
            raise
        fsync_folder(self.folder)
        reached("features-renamed")
        self._whole.add(name)
        return name

    def open(self, name: str) -> NDArray[np.uint8]:
        """The rows of a file, mapped: uint8 [n, bytes a row]. Raises OSError."""
        rows = len(self._known[name].ids)
        # "c": a mapping that may be written to, as torch wants it, and that reaches no file
        return np.asarray(np.memmap(self.folder / name, np.uint8, "c", _start(rows), (rows, self._row)))


def _start(rows: int) -> int:
    return -(-(_HEADER.size + 16 * rows) // 64) * 64


def _all(write: Callable[[memoryview], int | None], data: memoryview) -> None:
    while data.nbytes:
        data = data[write(data) or 0 :]


def find(wanted: Ids, segments: Sequence[Segment]) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """(which segment, which row of it) for each wanted id; -1 for those that are in none."""
    which, row = np.full(len(wanted), -1, np.int64), np.full(len(wanted), -1, np.int64)
    if not segments or not len(wanted):
        return which, row
    ids = np.concatenate([segment.ids for segment in segments])
    sizes = [len(segment.ids) for segment in segments]
    owner = np.repeat(np.arange(len(segments)), sizes)
    inner = np.arange(len(ids)) - np.repeat(np.cumsum([0, *sizes[:-1]]), sizes)
    order = np.argsort(ids[:, 0], kind="stable")
    places = np.minimum(np.searchsorted(ids[order, 0], wanted[:, 0]), len(ids) - 1)
    found = order[places]
    hit = (ids[found] == wanted).all(axis=1)
    which[hit], row[hit] = owner[found[hit]], inner[found[hit]]
    return which, row


class Turn:
    """Whose turn it is to compute: one process of all runs that share a folder, as far as the file system has locks.

    The system takes the lock from a process that dies. Nothing but double work depends on it.
    """

    def __init__(self, folder: Path, who: str) -> None:
        self._file, self._who = folder / "turn", who
        self._descriptor: int | None = None

    def take(self) -> bool:
        """Whether it is ours, now or already. Raises OSError where the file cannot be made."""
        if self._descriptor is not None:
            return True
        descriptor = os.open(self._file, os.O_CREAT | os.O_RDWR | os.O_CLOEXEC, 0o644)
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            os.close(descriptor)
            return False
        except OSError:  # no locks here
            pass
        self._descriptor = descriptor
        with contextlib.suppress(OSError):
            os.ftruncate(descriptor, 0)
            os.pwrite(descriptor, f"{self._who}, since {time.strftime('%H:%M:%S')}".encode(), 0)
        return True

    def holder(self) -> str:
        """Who has it, in words."""
        try:
            return self._file.read_text(encoding="utf-8") or "another run"
        except (OSError, ValueError):
            return "another run"

    def give(self) -> None:
        """Let the next one."""
        if self._descriptor is not None:
            with contextlib.suppress(OSError):  # a worker that was forked meanwhile may hold it open still
                fcntl.flock(self._descriptor, fcntl.LOCK_UN)
            os.close(self._descriptor)
            self._descriptor = None
