"""metrics.jsonl: one JSON object a point, each point once, however often the run was restarted."""

from __future__ import annotations

import contextlib
import itertools
import json
import math
import os
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from trainer.rundir.folder import fsync_folder


def read_points(path: Path) -> list[dict[str, Any]]:
    """The points of a record; a torn last line (a kill in mid-write) is left out."""
    return list(_points(path))


def _points(path: Path) -> Iterator[dict[str, Any]]:
    try:
        lines = path.read_text(encoding="utf-8", errors="replace").splitlines()
    except FileNotFoundError:
        return
    for line in lines:
        try:
            point = json.loads(line)
        except ValueError:
            continue
        if isinstance(point, dict):
            yield point


class Record:
    """Appends points to metrics.jsonl.

    Opening it for a resume keeps the first `points`, those that the checkpoint knew of; the resumed run logs the others again.
    A full disk costs nothing: what could not be written waits for the next point.
    """

    def __init__(self, path: Path, *, points: int) -> None:
        kept = list(itertools.islice(_points(path), points))
        self.points = len(kept)
        temporary = path.with_name(f".{path.name}.tmp")
        with temporary.open("w", encoding="utf-8") as file:
            file.writelines(_line(point) for point in kept)
            file.flush()
            os.fsync(file.fileno())
        temporary.replace(path)
        fsync_folder(path.parent)
        self._handle = os.open(path, os.O_WRONLY | os.O_APPEND)
        self._waiting = b""
        self._lock = threading.Lock()  # a checkpoint's thread syncs while the training appends

    def append(self, point: dict[str, Any]) -> None:
        """Add a point; handed to the system at once, so that only a machine's crash can lose it."""
        with self._lock:
            self._waiting += _line(point).encode()
            self.points += 1
            with contextlib.suppress(OSError):
                self._drain()

    def _drain(self) -> None:
        while self._waiting:
            self._waiting = self._waiting[os.write(self._handle, self._waiting) :]

    def sync(self) -> None:
        """Make what was appended durable: called before a checkpoint is committed. OSError when the disk is full."""
        with self._lock:
            self._drain()
        os.fsync(self._handle)

    def close(self) -> None:
        with contextlib.suppress(OSError):
            self._drain()
        os.close(self._handle)


def _line(point: dict[str, Any]) -> str:
    """One line of strict JSON; a number that is not finite becomes null."""
    clean = {k: None if isinstance(v, float) and not math.isfinite(v) else v for k, v in point.items()}
    return json.dumps(clean, separators=(",", ":"), allow_nan=False) + "\n"
