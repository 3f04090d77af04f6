"""metrics.jsonl: one JSON object a point, each point once, however often the run was restarted."""

from __future__ import annotations

import json
import math
import os
from collections.abc import Iterator
from pathlib import Path
from typing import IO, Any

from trainer.rundir.folder import fsync_folder


def read_points(path: Path) -> list[dict[str, Any]]:
    """The points of a record; a torn last line (a kill in mid-write) is left out."""
    return list(_points(path))


def _points(path: Path) -> Iterator[dict[str, Any]]:
    try:
        lines = path.read_text(encoding="utf-8").splitlines()
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

    Opening it for a resume at `step` drops every later point, which the resumed run logs again.
    """

    def __init__(self, path: Path, *, step: int) -> None:
        self._path = path
        kept = [p for p in _points(path) if p.get("step", 0) <= step]
        temporary = path.with_name(f".{path.name}.tmp")
        with temporary.open("w", encoding="utf-8") as file:
            file.writelines(_line(point) for point in kept)
            file.flush()
            os.fsync(file.fileno())
        temporary.replace(path)
        fsync_folder(path.parent)
        self._file: IO[str] = path.open("a", encoding="utf-8")

    def append(self, point: dict[str, Any]) -> None:
        """Add a point; handed to the system at once, so that only a machine's crash can lose it."""
        self._file.write(_line(point))
        self._file.flush()

    def sync(self) -> None:
        """Make what was appended durable: called before a checkpoint is committed."""
        os.fsync(self._file.fileno())

    def close(self) -> None:
        self._file.close()


def _line(point: dict[str, Any]) -> str:
    """One line of strict JSON; a number that is not finite becomes null."""
    clean = {k: None if isinstance(v, float) and not math.isfinite(v) else v for k, v in point.items()}
    return json.dumps(clean, separators=(",", ":"), allow_nan=False) + "\n"
