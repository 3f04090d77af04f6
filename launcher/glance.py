"""What the files of a run folder say, read so quickly that a thousand folders take less than a second.

No run file is parsed and no record read from its beginning: the summary, the last kilobytes of the record, the markers.
"""

from __future__ import annotations

import json
import os
import re
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from trainer.rundir import RunDir
from trainer.rundir.folder import STATES, Marker
from trainer.rundir.lease import Holder, read_holder
from trainer.rundir.metric import lower_is_better

# Bytes of the record's end: some fifty points, from which the pace of a run follows; of one that nobody trains the last will do.
_TAIL, _SHORT = 8192, 2048
_BEST = re.compile(rb"^  best: *(\S+)", re.MULTILINE)
_KEYS = ("steps", "epochs", "global_batch")
_SETTING = {key: re.compile(rb"^  " + key.encode() + rb": *([0-9.e+]+)", re.MULTILINE) for key in _KEYS}


@dataclass
class Glance:
    """A run folder as its files show it; every time is in seconds since 1970.

    `at` is when it last wrote something, `points` are the last ones of its record, `total` the samples that it is to see (none
    while that is not known), `beat` when its lease was last renewed.
    """

    rundir: RunDir
    at: float
    points: list[dict[str, Any]] = field(default_factory=list)
    recorded: bool = False
    total: int | None = None
    metric: str | None = None
    best: float | None = None
    marker: Marker | None = None
    job: dict[str, Any] = field(default_factory=dict)
    holder: Holder | None = None
    beat: float = 0.0

    @property
    def step(self) -> int:
        return int(number(self.last.get("step")) or 0)

    @property
    def samples(self) -> int:
        return int(number(self.last.get("samples")) or 0)

    @property
    def last(self) -> dict[str, Any]:
        """The newest point."""
        return self.points[-1] if self.points else {}

    @property
    def loss(self) -> float | None:
        """The newest loss of the training."""
        return next((v for p in reversed(self.points) if (v := number(p.get("train/loss"))) is not None), None)


def glance(rundir: RunDir) -> Glance:
    """Look at a run folder; whatever is missing or torn there counts as not written."""
    names = _names(rundir.path)
    found = Glance(rundir, _written(rundir.config))
    if "job.json" in names:
        found.job = rundir.read_json(rundir.job)
    if "lease.json" in names:
        found.holder, found.beat = read_holder(rundir.lease), _written(rundir.lease)
    if not names.isdisjoint(STATES):
        found.marker = rundir.marker()
        found.at = max([found.at, *(_written(rundir.path / name) for name in STATES if name in names)])
    if "metrics.jsonl" in names:
        tail, written = _tail(rundir.metrics, _TAIL if found.holder or found.job else _SHORT)
        found.points, found.recorded, found.at = list(objects(tail)), True, max(found.at, written)
        found.points = found.points or list(objects(_tail(rundir.metrics, _TAIL)[0]))
    summary = rundir.read_json(rundir.summary) if "summary.json" in names else {}
    best = summary.get("best")
    best = best if isinstance(best, dict) else {}
    total = number(summary.get("total_samples"))
    settings = b"" if total and best.get("metric") else _bytes(rundir.config)
    found.total = int(total) if total else _total(settings, found.last)
    named = str(best.get("metric") or "") or _named(settings)
    known = number(best.get("value"))
    points: Iterator[dict[str, Any]] = iter(found.points)
    if named and known is None and found.recorded and f'"{named}"'.encode() in (record := _bytes(rundir.metrics)):
        points = objects(record)  # no summary yet: the best may stand anywhere
    values = [value for point in points if (value := number(point.get(named))) is not None] if named else []
    values += [known] if known is not None else []
    if named and values:
        found.metric, found.best = named, (min if lower_is_better(named) else max)(values)
    return found


def number(value: Any) -> float | None:
    """A number as it is, anything else as none."""
    return float(value) if isinstance(value, (int, float)) and not isinstance(value, bool) else None


def objects(text: bytes) -> Iterator[dict[str, Any]]:
    """The JSON objects of a text, one a line; lines that are torn are left out."""
    for line in text.splitlines():
        if line[:1] == b"{":
            try:
                value = json.loads(line)
            except ValueError:
                continue
            if isinstance(value, dict):
                yield value


def events(path: Path, size: int = 1 << 16) -> list[dict[str, Any]]:
    """The last events of a file with one JSON object a line, none where it is missing."""
    return list(objects(_tail(path, size)[0]))


def ranks(rundir: RunDir) -> list[dict[str, Any]]:
    """The files in which the ranks show that they live, in their order; `age`: seconds since the last beat."""
    found = []
    now = time.time()
    for path in rundir.ranks.glob("rank-*.json"):
        facts = rundir.read_json(path)
        if isinstance(facts.get("rank"), int):
            found.append({**facts, "age": round(max(0.0, now - _written(path)), 1)})
    return sorted(found, key=lambda facts: int(facts["rank"]))


def rate(look: Glance, began: float) -> float | None:
    """Samples a second over the last points of the attempt that began then; evaluations and checkpoints are in it."""
    marks = [
        (moment, samples)
        for point in look.points
        if (moment := number(point.get("time"))) is not None
        and (samples := number(point.get("samples"))) is not None
        and moment >= began
    ]
    if not marks or marks[-1][1] <= marks[0][1] or marks[-1][0] <= marks[0][0]:
        return None
    return (marks[-1][1] - marks[0][1]) / (marks[-1][0] - marks[0][0])


def _names(folder: Path) -> set[str]:
    try:
        return set(os.listdir(folder))  # noqa: PTH208 (names alone; a Path for each costs more than all the rest)
    except OSError:
        return set()


def _written(path: Path) -> float:
    try:
        return path.stat().st_mtime
    except OSError:
        return 0.0


def _bytes(path: Path) -> bytes:
    try:
        return path.read_bytes()
    except OSError:
        return b""


def _tail(path: Path, size: int) -> tuple[bytes, float]:
    """The last bytes of a file, begun at a line, and when it was written."""
    try:
        with path.open("rb") as file:
            facts = os.fstat(file.fileno())
            if facts.st_size > size:
                file.seek(facts.st_size - size)
                file.readline()
            return file.read(), facts.st_mtime
    except OSError:
        return b"", 0.0


def _named(settings: bytes) -> str | None:
    """checkpoint.best of a run file that graft wrote."""
    found = _BEST.search(settings)
    return found[1].decode(errors="replace") if found else None


def _total(settings: bytes, last: dict[str, Any]) -> int | None:
    """The samples that a run is to see, before its first summary says so: from its steps, or its epochs and how long one is."""
    values = {}
    for key, pattern in _SETTING.items():
        if found := pattern.search(settings):
            values[key] = number(_float(found[1]))
    if values.get("steps") and values.get("global_batch"):
        return int((values["steps"] or 0) * (values["global_batch"] or 0))
    epoch, samples = number(last.get("epoch")), number(last.get("samples"))
    if values.get("epochs") and epoch and samples:
        return round((values["epochs"] or 0) * samples / epoch)
    return None


def _float(text: bytes) -> float | None:
    try:
        return float(text)
    except ValueError:
        return None
