"""Finds a learning rate: a short training in which it rises, step by step, until the loss diverges (Smith 2017, section 3.3)."""

from __future__ import annotations

import json
import math
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import torch

from trainer import build as building
from trainer.config import Run, UserError
from trainer.config.amounts import parse_amount
from trainer.config.compute import not_compiled
from trainer.loop import Job, train
from trainer.parts import Parts
from trainer.priors import open_prior
from trainer.progress import Clock, Progress
from trainer.report.finder import finder_chart
from trainer.rundir import RunDir, write_atomically
from trainer.runtime import Runtime

_SMOOTH = 0.98  # of the running mean of the losses, which is corrected for its start
_DIVERGED = 4.0  # times the lowest smoothed loss
_EVER = "1000000 h"
_ONE = {"processes": 1, "kind": "ddp", "offload": "none", "reshard_after_forward": True}


@dataclass
class Found:
    """The smoothed loss [n] at each rate [n], and what they suggest.

    `steepest`: where the loss falls fastest; `valley`: two thirds down the longest fall; `minimum`: a tenth of the rate with the
    lowest loss (the last two as fastai suggests them).
    """

    rates: list[float]
    losses: list[float]
    diverged: bool
    suggestions: dict[str, float] = field(default_factory=dict)

    def as_json(self) -> dict[str, Any]:
        return {"suggestions": self.suggestions, "diverged": self.diverged, "rates": self.rates, "losses": self.losses}


class _Rising:
    """The listener of the loop: keeps the losses, smoothed, and says when they diverge."""

    def __init__(self, rates: Sequence[float]) -> None:
        self._rates = rates
        self._mean = 0.0
        self.losses: list[float] = []
        self.diverged = False
        self._shown = 0.0

    def point(self, values: dict[str, Any], progress: Progress) -> None:
        """A loss of one step."""
        if "train/loss" not in values:
            return
        loss = float(values["train/loss"])
        if not math.isfinite(loss):
            self.diverged = True
            return
        self._mean = _SMOOTH * self._mean + (1 - _SMOOTH) * loss
        self.losses.append(self._mean / (1 - _SMOOTH ** (len(self.losses) + 1)))
        self.diverged = len(self.losses) > 5 and self.losses[-1] > _DIVERGED * min(self.losses)
        now = time.monotonic()
        if now - self._shown > 2 and len(self.losses) < len(self._rates):
            self._shown = now
            done = len(self.losses)
            print(f"step {done} of {len(self._rates)}: rate {self._rates[done - 1]:.2e}, loss {self.losses[-1]:.4g}", flush=True)

    def evaluated(self, evaluation: Any, progress: Progress, *, final: bool) -> None:
        """Nothing is evaluated."""


def find(run: Run, *, low: float, high: float, steps: int) -> Found:
    """Train `steps` steps from `low` to `high` with the run's own data, network, strategy and optimizer; nothing is kept.

    The rates are those of the head; parts with a factor keep it. Raises UserError, also of networks that learn against each
    other, whose losses do not say how well they learn.
    """
    if run.task.duels or run.task.kind == "cycle":
        raise UserError(
            f"task {run.task.kind} trains networks against each other, whose losses do not say how well they learn; try a few "
            "values of optimizer.lr with `graft sweep`, which goes by what is measured"
        )
    if not 0 < low < high:
        raise UserError(f"--low {low:g} must be more than 0 and less than --high {high:g}")
    if steps < 20:
        raise UserError(f"--steps {steps} is too few to see a curve; write 20 or more")
    rates = [low * (high / low) ** (step / (steps - 1)) for step in range(steps)]
    micro = run.train.micro_batch
    if micro == "auto":  # what a rank of the run would have
        ranks = run.parallel.processes if isinstance(run.parallel.processes, int) else 1
        micro = max(1, run.train.global_batch // ranks)
    batch = run.train.model_copy(update={"steps": steps, "ema": None, "micro_batch": micro})
    optimizer = run.optimizer.model_copy(update={"lr": 1.0})
    short = run.model_copy(update={"train": batch, "optimizer": optimizer, "parallel": run.parallel.model_copy(update=_ONE)})
    runtime = Runtime(short.parallel, short.train, planned=None, uncompiled=not_compiled(short))
    parts = building.build(short, runtime, None)
    with TemporaryDirectory() as drawn:
        open_prior(parts, Path(drawn), lambda stage: None, lambda: False, resumed=False)
        parts.open_features(lambda stage: None, lambda: False, val=False)
        return _found(parts, rates)


def _found(parts: Parts, rates: list[float]) -> Found:
    runtime, batch, steps = parts.runtime, parts.run.train, len(rates)
    listener = _Rising(rates)
    samples = batch.global_batch
    never = Clock(parse_amount(_EVER, times=True), epoch_samples=parts.epoch_samples, step_samples=samples, now=time.monotonic())
    job = Job(
        runtime=runtime, phases=parts.phases, average=None, batches=parts.batches(0), prepare=parts.prepare, steps=steps,
        global_batch=samples, epoch_samples=parts.epoch_samples, schedule=lambda seen: rates[min(steps - 1, seen // samples)],
        momentum=None, react=lambda progress: None, seed=parts.seed, evaluate=None, save=lambda progress, improved, wait: None,
        train_mode=parts.train_mode, wants_retry=lambda: False, stop=lambda: listener.diverged,
        beat=lambda step: None, at=lambda stage, phase=0, left=0: None, listener=listener, log_every=1, evaluate_every=never,
        checkpoint_every=never, evaluate_at_start=False, lower_is_better=True, best_metric="val/loss", patience=None,
        min_delta=0.0, clip=batch.clip, max_skipped=1,
    )  # fmt: skip
    try:
        train(job, Progress())
    finally:
        job.batches.close()
    kept = rates[: len(listener.losses)]
    return Found(kept, listener.losses, listener.diverged, suggest(kept, listener.losses))


def suggest(rates: Sequence[float], losses: Sequence[float]) -> dict[str, float]:
    """Rates worth trying; none where the loss never falls. The first tenth of the curve, where the mean settles, is left out."""
    first = len(losses) // 10
    if len(losses) - first < 5:
        return {}
    x = torch.tensor(rates[first:], dtype=torch.float64).log()
    y = torch.tensor(losses[first:], dtype=torch.float64)
    slopes = torch.gradient(y, spacing=(x,))[0]
    lowest = int(y.argmin())
    if lowest == 0 or float(slopes.min()) >= 0:
        return {}
    found = {"steepest": rates[first + int(slopes[: lowest + 1].argmin())]}
    start, end = _longest_fall(y.tolist())
    third = (end - start) / 3
    found["valley"] = rates[first + start + int(third) + int(third / 2)]
    found["minimum"] = rates[first + lowest] / 10
    return found


def _longest_fall(losses: Sequence[float]) -> tuple[int, int]:
    """Where the longest decreasing subsequence begins and ends."""
    lengths, before = [1] * len(losses), [-1] * len(losses)
    for i, loss in enumerate(losses):
        for j in range(i):
            if losses[j] > loss and lengths[j] + 1 > lengths[i]:
                lengths[i], before[i] = lengths[j] + 1, j
    end = start = max(range(len(losses)), key=lengths.__getitem__)
    while before[start] >= 0:
        start = before[start]
    return start, end


def write(folder: RunDir, found: Found) -> None:
    """`lr-finder.json` and `lr-finder.svg` in the run's folder, which stays as untouched as it was."""
    folder.path.mkdir(parents=True, exist_ok=True)
    write_atomically(folder.path / "lr-finder.json", json.dumps(found.as_json(), indent=1) + "\n")
    write_atomically(folder.path / "lr-finder.svg", finder_chart(found.rates, found.losses, found.suggestions))
