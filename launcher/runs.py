"""The runs of a folder: which there are, how far they got, how they ended."""

from __future__ import annotations

import re
import socket
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from trainer.config import GraftError, UserError, nearest
from trainer.rundir import RunDir, read_points
from trainer.rundir.lease import held_by, read_holder

_CHECKPOINT = re.compile(r"step-([0-9]+)")


@dataclass(frozen=True)
class Status:
    """A run as a table shows it.

    `total_samples` is none before the first evaluation; `at` is the time (seconds since 1970) of the last thing it wrote.
    """

    name: str
    folder: str
    state: str
    step: int
    samples: int
    total_samples: int | None
    best_metric: str | None
    best: float | None
    at: float
    reason: str

    def as_json(self) -> dict[str, Any]:
        return asdict(self)


def find(run: str, runs: Path) -> RunDir:
    """The folder of a run that is given by its path, or by its name below `runs`. Raises UserError."""
    for folder in (Path(run), runs / run):
        if RunDir(folder).exists():
            return RunDir(folder.resolve())
    names = [f.parent.name for f in runs.glob("*/run.yaml")]
    raise UserError(f"{run}: no run folder of that path, and no run of that name in {runs}{nearest(run, names)}")


def every(runs: Path) -> list[Status]:
    """All runs below a folder, the latest last."""
    return sorted((status(RunDir(file.parent)) for file in runs.glob("*/run.yaml")), key=lambda s: s.at)


def last_checkpoint(rundir: RunDir) -> int | None:
    """The step of the newest committed checkpoint."""
    steps = [int(m[1]) for f in rundir.checkpoints.glob("step-*") if (m := _CHECKPOINT.fullmatch(f.name)) and f.is_dir()]
    return max(steps, default=None)


def status(rundir: RunDir) -> Status:
    """Where a run stands, by its own files alone."""
    points = read_points(rundir.metrics)
    try:
        metric: str | None = rundir.load().checkpoint.best
    except GraftError:  # a folder from another version still has its name, its state and its record
        metric = None
    values = [float(p[metric]) for p in points if metric in p and p[metric] is not None]
    last = points[-1] if points else {}
    state, reason = _state(rundir)
    newest = [rundir.config, rundir.metrics, *(rundir.path / name for name in ("DONE", "REQUEUE", "FAILED"))]
    return Status(
        name=rundir.name, folder=str(rundir.path), state=state, step=int(last.get("step", 0)),
        samples=int(last.get("samples", 0)), total_samples=rundir.read_json(rundir.summary).get("total_samples"),
        best_metric=metric if values else None,
        best=(min if metric == "val/loss" else max)(values) if values else None,
        at=max(f.stat().st_mtime for f in newest if f.exists()), reason=reason,
    )  # fmt: skip


def _state(rundir: RunDir) -> tuple[str, str]:
    holder = read_holder(rundir.lease)
    if holder is not None and holder.host != socket.gethostname():
        # whether it beats would take seconds a run to see
        return "running", f"as its lease says: {holder}"
    if holder is not None and held_by(rundir.lease) is not None:
        return "running", str(holder)
    marker = rundir.marker()
    if marker is not None:
        return {"DONE": "done", "REQUEUE": "stopped", "FAILED": "failed"}[marker.state], marker.reason
    if holder is not None or rundir.metrics.exists():
        return "killed", "its last attempt left no marker; the same command goes on from the last checkpoint"
    return "new", "not started yet"
