"""How long a run will take: from what runs like it took, or from what a probe on this machine measured. No torch."""

from __future__ import annotations

import math
import re
from collections.abc import Iterable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from launcher.glance import number
from launcher.plan import Plan
from launcher.runs import duration, folders, last_checkpoint
from launcher.script import seconds
from trainer.config import Run
from trainer.config.alike import alike, between, cpu, gpu
from trainer.rundir import RunDir


@dataclass(frozen=True)
class Pace:
    """What is known of the speed of a run, and what follows for what is left of it.

    `rate`: samples a second within steps, between `low` and `high` for half of the points; `overall`: with evaluations and
    saves, where that is known and they are alike as well. `of` says whose figures these are; `hours` are of GPUs, none without
    them; `jobs`: how many of the time limit it takes, none without a limit.
    """

    rate: float
    low: float
    high: float
    overall: float | None
    of: str
    seconds: float
    hours: float | None
    jobs: int | None

    def as_json(self) -> dict[str, Any]:
        return asdict(self)

    def text(self, limit: str | None) -> str:
        """For people."""
        whole = "" if self.overall is not None else ", without evaluations and checkpoints"
        hours = f", {self.hours:,.3g} GPU-hours" if self.hours is not None else ""
        said = f"about {duration(self.seconds)}{hours}{whole}: {self.rate:,.4g} samples/s ({self.of})"
        if self.jobs is not None and self.jobs > 1:
            said += f"; does not finish in one job of {limit}: about {self.jobs} jobs"
        return said


def past(run: Run, planned: Plan, rundir: RunDir, runs: Path, *, card: str | None = None) -> Pace | None:
    """From the runs of the folder (and this one itself) that are alike and had as many ranks on the same processor.

    `card` is a cluster's word for its GPUs, such as h100, or nothing where it has none; none: this machine is meant.
    """
    key, cuda = alike(run), planned.device == "cuda"
    found = []
    for folder in [rundir, *(one for one in folders(runs) if one.path.resolve() != rundir.path.resolve())]:
        speed = _speed(folder, key)
        if speed is None or speed["world"] != planned.world_size or bool(speed["gpus"]) != cuda:
            continue
        if not _same(str(speed["device"]), card, cuda=cuda) or (not cuda and speed["threads"] != planned.threads):
            continue
        found.append((folder.summary.stat().st_mtime, folder.name, speed))
    if not found:
        return None
    _, name, latest = max(found, key=lambda one: one[:2])
    rates = [number(speed["samples_per_second"]) or 0.0 for *_, speed in found]
    others = f", the latest of {len(found)} alike: {min(rates):,.4g} to {max(rates):,.4g}/s" if len(found) > 1 else ""
    of = f"as the run {name} went on {planned.world_size} x {latest['device']}{others}"
    low, high = latest["quartiles"]
    overall = number(latest.get("overall")) if latest.get("between") == between(run) else None
    return foretold(run, planned, rundir, latest["samples_per_second"], low, high, overall, of)


def _same(device: str, card: str | None, *, cuda: bool) -> bool:
    """Whether a processor is that of this machine, or one that a cluster calls `card`; where nobody says, any one is."""
    if card is None:
        here = gpu() if cuda else cpu()
        return here is None or device == here
    return not cuda or not card or re.search(rf"\b{re.escape(card)}\b", device, re.IGNORECASE) is not None


def foretold(
    run: Run, planned: Plan, rundir: RunDir, rate: float, low: float, high: float, overall: float | None, of: str
) -> Pace | None:  # fmt: skip
    """What follows from a rate for the rest of a run; none where there is no rest, or the rate is none."""
    left = planned.samples - planned.global_batch * (last_checkpoint(rundir) or 0)
    if left <= 0 or not rate > 0:
        return None
    took = left / (overall or rate)
    hours = took * planned.world_size / 3600 if planned.device == "cuda" else None
    limit = seconds(run.resources.time) if run.resources.time else 0
    jobs = max(1, math.ceil(took / limit)) if limit else None
    return Pace(rate, low, high, overall, of, took, hours, jobs)


def _speed(folder: RunDir, key: str) -> dict[str, Any] | None:
    """What the summary of a run says of its speed, if it is alike and whole. Most are not, and are not parsed."""
    try:
        if key not in folder.summary.read_text(encoding="utf-8"):
            return None
    except (OSError, ValueError):
        return None
    speed = folder.read_json(folder.summary).get("speed")
    if not isinstance(speed, dict) or speed.get("alike") != key:
        return None
    quartiles = speed.get("quartiles")
    numbers: Iterable[Any] = (speed.get("samples_per_second"), *(quartiles if isinstance(quartiles, list) else ()))
    known = [number(value) for value in numbers]
    if len(known) != 3 or None in known or not {"world", "gpus", "device", "threads"} <= speed.keys():
        return None
    return speed


@dataclass(frozen=True)
class Probe:
    """What `python -m trainer probe` measured: samples a second of one rank, each (low quartile, median, high quartile)."""

    loader: tuple[float, float, float]
    step: tuple[float, float, float]
    together: tuple[float, float, float]
    workers: int
    cores: int
    cheap: bool
    batch: int

    @property
    def needed(self) -> int | None:
        """Loader workers that would keep up with the steps, if each adds what the ones now do; none where it keeps up already."""
        if self.cheap or (self.workers and self.loader[1] >= self.step[1]):
            return None
        return max(self.workers + 1, math.ceil(max(1, self.workers) * self.step[1] / self.loader[1]))

    def as_json(self) -> dict[str, Any]:
        return {**asdict(self), "needed_workers": self.needed}

    def rows(self, ranks: int) -> list[tuple[str, str]]:
        """For people: label and text; `ranks` are those of this machine."""
        rows = [
            ("probe", f"{_spread(self.together)} of one rank, {self.batch} a step, on this machine after a warm-up"),
            ("loader", f"{_spread(self.loader)} alone, with {self.workers} workers"),
            ("step", f"{_spread(self.step)} alone, its data in memory"),
        ]
        if self.cheap:
            return [*rows, ("bound by", "the step: fetching is indexing here, and no loader runs")]
        if self.needed is None:
            return [*rows, ("bound by", f"the step; the loader gives {self.loader[1] / self.step[1]:.2g} times what it takes")]
        how = f"about {self.needed} workers would keep up (data.workers={self.needed})"
        if not self.workers:
            how = f"it loads in the training process, between the steps; {how}"
        if self.needed * ranks > self.cores:
            how += f", and this machine has {self.cores} cores for {ranks} rank{'s' if ranks > 1 else ''}"
            how += ": data.cache: decoded, or data.decoder: torchvision, makes loading cheaper"
        return [*rows, ("bound by", f"the loader: {self.loader[1] / self.step[1]:.2g} of what the step takes; {how}")]


def _spread(figures: tuple[float, float, float]) -> str:
    low, middle, high = figures
    return f"{middle:,.4g} samples/s ({low:,.4g} to {high:,.4g})"
