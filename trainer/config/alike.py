"""Which runs go at the same speed: a key of all that decides it, and the processor that it was measured on."""

from __future__ import annotations

import hashlib
import json
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from trainer.config.run import Run

# Of each section what does not change how long a step takes.
_TRAIN = {"epochs", "steps", "seed", "clip", "max_skipped"}
_DATA = {
    "val",
    "classes",
    "per_class",
    "fraction",
    "split_seed",
    "min_per_class",
    "sampling",
    "max_pixels",
    "max_bad",
    "normalize",
}
# And what decides, of the same speed, how much of the time evaluations and checkpoints take.
_BETWEEN = {"val", "classes", "per_class", "fraction", "min_per_class"}
_PARALLEL = {"device", "processes", "timeout"}


def alike(run: Run) -> str:
    """The same for runs that differ in rates, seeds, schedules, lengths and which samples of a source they take."""
    decides: dict[str, Any] = {
        "task": run.task.model_dump(mode="json"),
        "model": run.model.model_dump(mode="json", exclude={"weights", "source"}),
        # a job has its networks' files in a snapshot of its own
        "source": run.model.source.rpartition("/")[2] if run.model.source.startswith("python:") else run.model.source,
        "strategy": run.strategy.model_dump(mode="json"),
        "losses": run.losses.model_dump(mode="json"),
        "optimizer": run.optimizer_identity,
        "data": run.data.model_dump(mode="json", exclude=_DATA),
        "train": run.train.model_dump(mode="json", exclude=_TRAIN),
        "parallel": run.parallel.model_dump(mode="json", exclude=_PARALLEL),
    }
    return _key(decides)


def between(run: Run) -> str:
    """The same for runs that evaluate and save as much and as often, where they are `alike`."""
    return _key({
        "data": run.data.model_dump(mode="json", include=_BETWEEN),
        "evaluate": run.evaluate.model_dump(mode="json", exclude={"early_stop"}),
        "checkpoint": run.checkpoint.model_dump(mode="json"),
    })  # fmt: skip


def _key(decides: dict[str, Any]) -> str:
    return hashlib.sha256(json.dumps(decides, sort_keys=True).encode()).hexdigest()[:16]


def cpu() -> str:
    """What the kernel calls this machine's processor."""
    with suppress(OSError):
        for line in Path("/proc/cpuinfo").read_text(encoding="utf-8", errors="replace").splitlines():
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    return "a CPU"


def gpu() -> str | None:
    """What the driver calls the first GPU of this machine; none where it says nothing."""
    for file in sorted(Path("/proc/driver/nvidia/gpus").glob("*/information")):
        with suppress(OSError):
            for line in file.read_text(encoding="utf-8", errors="replace").splitlines():
                if line.startswith("Model:"):
                    return line.partition(":")[2].strip()
    return None
