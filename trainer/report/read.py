"""What a report knows of a run: everything read from its folder, missing pieces left empty."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from trainer.config import UserError
from trainer.rundir import Marker, RunDir, read_points
from trainer.rundir.metric import lower_is_better

Json = dict[str, Any]


@dataclass(frozen=True)
class View:
    """One run as its folder tells it."""

    folder: RunDir
    label: str
    config: Json
    text: str
    manifest: Json
    summary: Json
    points: list[Json]
    attempts: list[Json]
    evaluation: Json
    marker: Marker | None

    @property
    def best_metric(self) -> str:
        return str(self.config.get("checkpoint", {}).get("best", "val/accuracy"))

    def series(self, key: str) -> tuple[list[float], list[float]]:
        """Samples and values of the points that have a metric."""
        found = [(p["samples"], p[key]) for p in self.points if key in p and "samples" in p]
        return [float(x) for x, _ in found], [float("nan") if y is None else float(y) for _, y in found]

    def measured(self) -> list[str]:
        """The metrics of the evaluations."""
        return list(dict.fromkeys(key for point in self.points for key in point if key.startswith("val/")))

    def best(self) -> tuple[float, Json] | None:
        """The best value of the metric that chooses the best checkpoint, and the point where it was measured."""
        key = self.best_metric
        measured = [p for p in self.points if isinstance(p.get(key), int | float)]
        if not measured:
            return None
        lower = lower_is_better(key)
        point = (min if lower else max)(measured, key=lambda p: p[key])
        return float(point[key]), point

    def last(self, key: str) -> float | None:
        """The latest value of a metric or counter in the record."""
        return next((p[key] for p in reversed(self.points) if isinstance(p.get(key), int | float)), None)

    def state(self) -> str:
        """`done`, `failed`, `to be resumed`, or `unfinished` after a kill and while it runs."""
        names = {"DONE": "done", "FAILED": "failed", "REQUEUE": "to be resumed"}
        return names[self.marker.state] if self.marker else "unfinished"


def read_run(folder: RunDir) -> View:
    """Read a run folder; UserError when it is none."""
    run = folder.load()
    return View(
        folder=folder,
        label=run.name,
        config=run.model_dump(mode="json"),
        text=folder.config.read_text(encoding="utf-8"),
        manifest=folder.read_json(folder.manifest),
        summary=folder.read_json(folder.summary),
        points=read_points(folder.metrics),
        attempts=read_points(folder.attempts),
        evaluation=_evaluation(folder),
        marker=folder.marker(),
    )


def read_runs(folders: list[RunDir]) -> list[View]:
    """The runs of a report with labels that differ."""
    if not folders:
        raise UserError("a report needs at least one run folder")
    views = [read_run(folder) for folder in folders]
    labels = [view.label for view in views]
    if len(set(labels)) == len(labels):
        return views
    return [View(**{**view.__dict__, "label": str(view.folder.path)}) for view in views]


def _evaluation(folder: RunDir) -> Json:
    """samples/evaluation.json if it is whole: of classes, if its matrix fits them; else nothing."""
    value = folder.read_json(folder.samples / "evaluation.json")
    if value.get("kind", "classify") != "classify":
        return value
    classes, matrix = value.get("classes", []), value.get("confusion", [])
    square = len(matrix) == len(classes) and all(len(row) == len(classes) for row in matrix)
    return value if square else {}


def picture(folder: RunDir, file: str) -> bytes | None:
    """The bytes of an example picture inside the samples folder; none when it is missing, elsewhere or not a PNG."""
    root = folder.samples.resolve()
    path = (root / file).resolve()
    if not path.is_relative_to(root):
        return None
    try:
        data = path.read_bytes()
    except OSError:
        return None
    return data if data.startswith(b"\x89PNG\r\n\x1a\n") else None


def flat(value: Any, prefix: str = "") -> list[tuple[str, str]]:
    """Dotted keys and their values as text, for a table of facts."""
    if isinstance(value, dict):
        return [row for key, inner in value.items() for row in flat(inner, f"{prefix}{key}.")]
    text = value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)
    return [(prefix[:-1], text)]


def default_output(folders: list[RunDir]) -> Path:
    """Where a report goes when nobody says: into the run's folder, or beside the folders of several runs."""
    return folders[0].report if len(folders) == 1 else folders[0].path.parent / "report.html"
