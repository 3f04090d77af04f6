"""The open W&B run as a mirror of the record: row i is line i of metrics.jsonl."""

from __future__ import annotations

import math
from io import BytesIO
from pathlib import Path
from typing import Any

from trainer.rundir import RunDir
from trainer.track.child import tell
from trainer.track.picture import draw_confusion
from trainer.track.redact import redact


def open_run(start: dict[str, Any], mode: str, folder: Path, finish_timeout: float) -> Any:
    """`wandb.init` for a run of ours, whose files go below `folder`. Raises wandb's errors."""
    import wandb

    asked: Any = start["settings"]
    quiet = wandb.Settings(
        silent=True, console="off", disable_code=True, save_code=False, disable_git=True, disable_job_creation=True,
        x_disable_stats=True, x_disable_meta=True, x_disable_machine_info=True,
        init_timeout=asked["timeout"], finish_timeout=finish_timeout, finish_timeout_raises=True,
    )  # fmt: skip
    named: Any = mode
    run = wandb.init(
        id=start["id"], resume="allow", dir=str(folder), name=start["name"], mode=named, config=redact(start["config"]),
        project=asked["project"], entity=asked["entity"], group=asked["group"], tags=asked["tags"], settings=quiet,
    )  # fmt: skip
    run.define_metric("samples")
    run.define_metric("*", step_metric="samples")
    return run


class Mirror:
    """Sends lines of the record to an open run that has the first `rows` of them already."""

    def __init__(self, folder: RunDir, run: Any, rows: int) -> None:
        self.next = rows
        self._folder = folder
        self._run = run
        self._seen = 0
        self._held: list[tuple[int, dict[str, Any]]] = []
        self._extras: dict[int, dict[str, Any]] = {}

    def catch_up(self, points: list[dict[str, Any]]) -> None:
        """Send what the run lacks of these first lines of the record, with the pictures that the run folder has of them."""
        for point in points:
            self.log(point)
        evaluation = self._folder.read_json(self._folder.samples / "evaluation.json") if self._held else {}
        for step in {step for step, _ in self._held}:
            self._stored(step, evaluation)
        self._send(math.inf)

    def _stored(self, step: int, evaluation: dict[str, Any]) -> None:
        picture = self._folder.samples / f"step-{step:08d}.png"
        try:
            if picture.is_file():
                self.images("val/predictions", [(str(picture), f"step {step:,}")], step)
            if evaluation.get("step") == step and "confusion" in evaluation:
                self.confusion(evaluation["confusion"], evaluation["classes"], step)
        except Exception as error:
            tell("warning", f"W&B: the pictures of step {step} left out: {error}")

    def log(self, point: dict[str, Any]) -> None:
        """Hold the next line of the record until it is committed, unless the run has it already."""
        if self._seen >= self.next:
            self._held.append((int(point.get("step", 0)), point))
        self._seen += 1

    def images(self, key: str, files: list[tuple[str, str]], step: int) -> None:
        import wandb
        from PIL import Image

        pictures = []
        for name, caption in files:
            with Image.open(BytesIO(Path(name).read_bytes())) as image:
                pictures.append(wandb.Image(image.copy(), caption=caption))
        self._extras.setdefault(step, {})[key] = pictures

    def confusion(self, matrix: list[list[int]], classes: list[str], step: int) -> None:
        """As a picture: a table would be an artifact, which asks the server in mid-run and can fail the whole row."""
        import wandb

        self._extras.setdefault(step, {})["val/confusion"] = wandb.Image(draw_confusion(matrix, classes))

    def commit(self, step: int) -> None:
        self._send(step)

    def summary(self, values: dict[str, Any]) -> None:
        self._run.summary.update(values)

    def _send(self, step: float) -> None:
        """Log the held points up to a step, in order; pictures go with the last of their step."""
        ready = [point for at, point in self._held if at <= step]
        last = {int(point.get("step", 0)): index for index, point in enumerate(ready)}
        self._held = [held for held in self._held if held[0] > step]
        for index, point in enumerate(ready):
            at = int(point.get("step", 0))
            row = {k: v for k, v in point.items() if v is not None and not (isinstance(v, float) and not math.isfinite(v))}
            if last[at] == index:
                row |= self._extras.pop(at, {})
            self._run.log({"_timestamp": point["time"], **row} if "time" in point else row)
            self.next += 1
        self._extras = {at: extra for at, extra in self._extras.items() if at > step}
