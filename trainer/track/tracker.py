"""Everything that is recorded of a run, by rank 0: the record, the console, W&B, pictures and the summary."""

from __future__ import annotations

import json
import logging
import time
from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from trainer import answers as answers_of
from trainer import gallery, sheet
from trainer.checkpoint import Cost, longest
from trainer.config import Run
from trainer.progress import Progress
from trainer.rundir import Record, RunDir, write_atomically
from trainer.tasks.base import Evaluation
from trainer.track.console import Console
from trainer.track.speed import Speed
from trainer.track.wandb_sink import WandbSink

FINISH_WITHIN, STOP_WITHIN = 60.0, 10.0  # seconds
log = logging.getLogger("graft.track")


@dataclass(frozen=True)
class Pictures:
    """How to show a validation sample: its pixels as the network sees them, and its name."""

    fetch: gallery.Fetch
    keys: Sequence[str]


class Tracker:
    """Listens to the loop. A failure to draw or to write a summary is logged and costs nothing else."""

    def __init__(
        self, folder: RunDir, run: Run, progress: Progress, *, wall: Callable[[], float], attempt: int, total_samples: int,
        epoch_samples: int, parameters: Any, memory: Callable[[], int | None], pictures: Pictures | None,
        sizes: dict[str, Any], speed: Speed,
    ) -> None:  # fmt: skip
        self._folder = folder
        self._run = run
        self._wall = wall
        self._attempt = attempt
        self._total = total_samples
        self._epoch_samples = epoch_samples
        self._parameters = parameters
        self._memory = memory
        self._pictures = pictures
        self._sizes, self._speed = sizes, speed
        self._began = time.time()
        self.costs: deque[Cost] = deque()  # of the checkpoints since the last point, from the saver's thread
        self._cost: dict[str, float] = {}  # of the costliest checkpoint of this attempt
        self._record = Record(folder.metrics, points=progress.points)
        self._wandb = WandbSink(folder, run)
        self._console = Console(name=run.name, total_samples=total_samples, seen=progress.samples, main=True)
        if progress.step:
            self._console.message(f"going on at step {progress.step:,}, {progress.samples:,} of {total_samples:,} samples")

    @property
    def points(self) -> int:
        """Points of the record so far: a checkpoint keeps the number, a resume keeps just those points."""
        return self._record.points

    def point(self, values: dict[str, Any], progress: Progress) -> None:
        """Record a point of the curves, with what the checkpoints since the last one cost."""
        values |= self._costs()
        found = values | self._speed.figures(values, progress.samples)
        values = {key: float(f"{value:.5g}") if key.startswith("speed/") else value for key, value in found.items()}
        self._add(values, progress)
        self._console.update(progress.samples, progress.step, progress.samples / self._epoch_samples, values)

    def _costs(self) -> dict[str, float]:
        found = [self.costs.popleft() for _ in range(len(self.costs))]
        columns = longest(found)
        self._cost |= {name: max(value, self._cost.get(name, value)) for name, value in columns.items()}
        return columns

    def pulse(self, step: int, samples: int) -> None:
        """Show how far the training is; called after every step."""
        self._console.pulse(samples, step, samples / self._epoch_samples)

    def _add(self, values: dict[str, Any], progress: Progress) -> dict[str, Any]:
        point = {
            "samples": progress.samples, "step": progress.step, "epoch": round(progress.samples / self._epoch_samples, 6),
            "time": round(time.time(), 3), **values,
        }  # fmt: skip
        self._record.append(point)
        self._wandb.log(point)
        return point

    def evaluated(self, evaluation: Evaluation, progress: Progress, *, final: bool) -> None:
        """Record an evaluation, draw its predictions, and keep what the report needs."""
        point = self._add(progress.metrics, progress)
        self._console.evaluation(point)
        try:
            self._draw(evaluation, point, progress, final=final)
            self._summarise(progress, "running")
        except Exception as error:  # pictures are no reason to stop a training
            log.warning("the predictions of step %d were not drawn: %s", progress.step, error)

    def _draw(self, evaluation: Evaluation, point: dict[str, Any], progress: Progress, *, final: bool) -> None:
        samples, details = self._folder.samples, dict(evaluation.details)
        if "answers" not in details:
            return self._draw_sheet(evaluation, point, progress)
        answers = details.pop("answers")
        if "confusion" in details:
            self._wandb.confusion(details["confusion"], details["classes"], point)
        if self._pictures is None:
            return
        show, teller = self._pictures, answers_of.teller(details)
        chosen = gallery.choose(answers, self._run.evaluate.show)
        if chosen:
            path = samples / f"step-{progress.step:08d}.png"
            caption = gallery.contact_sheet(teller, chosen, show.fetch, path)
            self._wandb.images("val/predictions", [(path, caption)], point)
        details |= {"step": progress.step, "metrics": evaluation.metrics, "examples": []}
        if final:
            details["examples"] = gallery.examples(teller, answers, show.fetch, samples)
            gallery.table(teller, answers, show.keys, samples / "predictions.csv")
        write_atomically(samples / "evaluation.json", json.dumps(details) + "\n")

    def _draw_sheet(self, evaluation: Evaluation, point: dict[str, Any], progress: Progress) -> None:
        """Keep the images that a generator made, and what was measured of it."""
        samples, made = self._folder.samples, evaluation.sheet
        if made is not None:
            path = samples / f"step-{progress.step:08d}.png"
            sheet.save([gallery.picture(image) for image in made.images], made.captions, made.columns, path)
            self._wandb.images("val/samples", [(path, f"step {progress.step:,}")], point)
        details = {**evaluation.details, "step": progress.step, "metrics": evaluation.metrics}
        samples.mkdir(parents=True, exist_ok=True)
        write_atomically(samples / "evaluation.json", json.dumps(details) + "\n")

    def sync(self) -> None:
        """Make the record durable, before a checkpoint that relies on it."""
        self._record.sync()

    def committed(self, step: int) -> None:
        """A checkpoint is on disk: the points up to it are final."""
        self._wandb.commit(step)

    def _summarise(self, progress: Progress, state: str) -> dict[str, Any]:
        wall = self._wall()
        summary = {
            "name": self._run.name, "state": state, "step": progress.step, "samples": progress.samples,
            "total_samples": self._total, "epoch": round(progress.samples / self._epoch_samples, 4),
            "final": progress.metrics, "best": {"metric": self._run.checkpoint.best, "value": progress.best,
            "step": progress.best_step, "metrics": progress.best_metrics}, "skipped_steps": progress.skipped,
            "attempts": self._attempt, "wall_seconds": round(wall, 2), "productive_seconds": round(progress.productive, 2),
            "ettr": round(progress.productive / wall, 4) if wall > 0 else None, "parameters": self._parameters,
             "peak_bytes": self._memory(), "checkpoint": self._cost, **self._sizes,
             "speed": self._speed.summary() or self._folder.read_json(self._folder.summary).get("speed"),
        }  # fmt: skip
        write_atomically(self._folder.summary, json.dumps(summary, indent=1) + "\n")
        return summary

    def close(self, progress: Progress, *, complete: bool, ours: bool = True) -> None:
        """Finish the record, the console and the summary (not in a folder that is no longer ours).

        Raises nothing: it must not hide why a training failed.
        """
        if ours:
            self._finish(progress, complete)
        self._end(self._console.close, self._record.close, self._speed.close)

    def finish(self, *, complete: bool) -> None:
        """End W&B, which has a limited time for it: a short one where a signal's grace runs. Comes after the marker."""
        self._end(lambda: self._wandb.finish(timeout=FINISH_WITHIN if complete else STOP_WITHIN))

    def _end(self, *ends: Callable[[], None]) -> None:
        for end in ends:
            try:
                end()
            except Exception as error:
                log.warning("the tracking did not end as it should: %s", error)

    def _finish(self, progress: Progress, complete: bool) -> None:
        self._costs()  # of the last checkpoint, which no point comes after
        try:
            summary = self._summarise(progress, "done" if complete else "stopped")
            self._wandb.summary({**progress.metrics, "best": progress.best, "ettr": summary["ettr"], **self._sizes})
            if complete:
                self._console.message(_closing(summary))
        except Exception as error:
            log.warning("the summary was not written: %s", error)


def _closing(summary: dict[str, Any]) -> str:
    best = summary["best"]
    result = f"best {best['metric']} {best['value']:.4f} at step {best['step']:,}; " if best["value"] is not None else ""
    return (
        f"done: {summary['samples']:,} samples in {summary['productive_seconds']:.1f} s of training, {result}"
        f"{summary['attempts']} attempt(s), {summary['ettr']:.0%} of the wall time productive"
    )
