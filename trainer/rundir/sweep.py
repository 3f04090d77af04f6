"""The folder of a sweep: which runs are its members, what became of them, and every path in it.

A member is a run with a folder of its own, beside this one. This folder has no run.yaml, and so is no run itself.
"""

from __future__ import annotations

import csv
import io
import json
import socket
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from trainer.rundir.folder import RunDir, write_atomically
from trainer.rundir.lease import held_by, read_holder
from trainer.rundir.metric import lower_is_better
from trainer.rundir.record import read_points

_BEAT_OLD = 120.0  # seconds; a lease is renewed every five
_STATES = {"DONE": "done", "REQUEUE": "stopped", "FAILED": "failed"}


@dataclass(frozen=True)
class Row:
    """One member and what became of it.

    `best` is its best value of the sweep's metric, `metrics` are those of its last evaluation, `seconds` it trained for,
    `peak_bytes` a rank had at most while it did.
    """

    index: int
    name: str
    settings: dict[str, Any]
    state: str
    step: int
    best: float | None
    metrics: dict[str, float | None]
    seconds: float | None
    peak_bytes: int | None = None

    def as_json(self) -> dict[str, Any]:
        return dict(self.__dict__)


@dataclass(frozen=True)
class SweepDir:
    """The sweep folder at `path`; one place that knows the name of everything in it."""

    path: Path

    @property
    def name(self) -> str:
        return self.path.name

    @property
    def config(self) -> Path:
        """The sweep file, resolved; a sweep file itself."""
        return self.path / "sweep.yaml"

    @property
    def members(self) -> Path:
        """`best`, the metric that the members are compared by, and `members`: name and settings of each."""
        return self.path / "members.json"

    @property
    def results(self) -> Path:
        return self.path / "results.csv"

    @property
    def report(self) -> Path:
        return self.path / "report.html"

    @property
    def logs(self) -> Path:
        return self.path / "log"

    @property
    def arrays(self) -> Path:
        """One folder a submission: the list of its members, its scripts and its code stay as they were while its tasks wait."""
        return self.path / "arrays"

    def exists(self) -> bool:
        return self.config.is_file()

    def member(self, name: str) -> RunDir:
        """The run folder of a member."""
        return RunDir(self.path.parent / name)

    def rows(self) -> tuple[str, list[Row]]:
        """The metric that the members are compared by, and the members: the best first, then those without a result in order."""
        plan = RunDir(self.path).read_json(self.members)
        metric = str(plan.get("best", "val/accuracy"))
        members = plan.get("members", [])
        found = [_row(index, self.member(one["name"]), one["settings"], metric) for index, one in enumerate(members)]
        sign = 1 if lower_is_better(metric) else -1
        return metric, sorted(found, key=lambda row: (row.best is None, sign * (row.best or 0.0), row.index))

    def write_results(self) -> tuple[str, list[Row]]:
        """Bring results.csv up to date; returns what `rows` does."""
        metric, rows = self.rows()
        write_atomically(self.results, as_csv(metric, rows))
        return metric, rows


def keys(rows: list[Row]) -> list[str]:
    """The settings that were searched, in the order in which they appear."""
    return list(dict.fromkeys(key for row in sorted(rows, key=lambda row: row.index) for key in row.settings))


def as_csv(metric: str, rows: list[Row]) -> str:
    """The table as CSV: name, settings, state, step, best value, metrics of the last evaluation, seconds, bytes."""
    settings = keys(rows)
    metrics = list(dict.fromkeys(key for row in rows for key in row.metrics))
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(["name", *settings, "state", "step", f"best {metric}", *metrics, "seconds", "peak_bytes"])
    for row in rows:
        values = [as_text(row.settings[key]) if key in row.settings else "" for key in settings]
        last = [row.metrics.get(key) for key in metrics]
        writer.writerow([row.name, *values, row.state, row.step, row.best, *last, row.seconds, row.peak_bytes])
    return text.getvalue()


def as_text(value: Any) -> str:
    """A setting as a cell of a table: words as they are, a section as JSON."""
    return value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)


def _row(index: int, folder: RunDir, settings: dict[str, Any], metric: str) -> Row:
    summary = folder.read_json(folder.summary)
    known = summary.get("best") or {}
    last, best, step = dict(summary.get("final") or {}), None, int(summary.get("step") or 0)
    if known.get("metric") == metric and summary.get("state") == "done":
        best = known.get("value")
    elif folder.metrics.is_file():  # it runs, or another metric chose its checkpoint
        points = read_points(folder.metrics)
        values = [p[metric] for p in points if isinstance(p.get(metric), int | float)]
        best = (min if lower_is_better(metric) else max)(values, default=None)
        step = int((points[-1] if points else {}).get("step", step))
        evaluated: dict[str, Any] = next((p for p in reversed(points) if any(key.startswith("val/") for key in p)), {})
        last = {key: value for key, value in evaluated.items() if key.startswith("val/")} or last
    seconds = summary.get("productive_seconds")
    return Row(index, folder.name, settings, _state(folder), step, best, last, seconds, summary.get("peak_bytes"))


def _beats(folder: RunDir) -> bool:
    """Whether a lease of another host was renewed lately: one that was left by a node that died is old."""
    try:
        return time.time() - folder.lease.stat().st_mtime < _BEAT_OLD
    except OSError:
        return False


def _state(folder: RunDir) -> str:
    holder = read_holder(folder.lease)
    if holder is not None and (_beats(folder) if holder.host != socket.gethostname() else held_by(folder.lease) is not None):
        return "running"
    marker = folder.marker()
    if marker is not None:
        return _STATES[marker.state]
    if folder.metrics.exists():
        return "killed"
    return "queued" if folder.job.exists() else "new"
