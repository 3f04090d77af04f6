"""Measures how fast a run is on this machine: its loader alone, its steps alone, and both together.

Nothing of the training is kept; what `data.cache` keeps is made, as the run would make it.
"""

from __future__ import annotations

import itertools
import os
import time
from collections.abc import Generator, Iterator, Sequence
from contextlib import closing
from dataclasses import asdict, dataclass
from pathlib import Path
from statistics import quantiles
from tempfile import TemporaryDirectory
from typing import Any

from trainer import build as building
from trainer.config import Run
from trainer.config.amounts import parse_amount
from trainer.config.arithmetic import rank_shares
from trainer.config.compute import not_compiled
from trainer.data import Batch
from trainer.loop import Job, train
from trainer.parts import Parts
from trainer.priors import open_prior
from trainer.progress import Clock, Progress
from trainer.runtime import Runtime
from trainer.session import Silent

Spread = tuple[float, float, float]  # lower quartile, median, upper quartile
_EVER = "1000000 h"
_ONE = {"processes": 1, "kind": "ddp", "offload": "none", "reshard_after_forward": True}
_WARM, _LEAST = 4, 5  # steps that are left out, and that are measured at least
_HELD = 4  # steps whose data is held in memory
_MANY = 10**6  # steps: more than there is time for


@dataclass(frozen=True)
class Probed:
    """Samples a second of one rank with `batch` samples a step. `cheap`: fetching is indexing, and no worker runs."""

    loader: Spread
    step: Spread
    together: Spread
    workers: int
    cores: int
    cheap: bool
    batch: int

    def as_json(self) -> dict[str, Any]:
        return asdict(self)


def probe(run: Run, *, world: int, seconds: float) -> Probed:
    """Measure what one of `world` ranks does, for so many seconds each after a warm-up. Raises UserError.

    The ranks' meeting is not in it. The network learns meanwhile, and is forgotten; images of a prior too.
    """
    with TemporaryDirectory() as drawn:
        return _probe(run, world, seconds, Path(drawn))


def _probe(run: Run, world: int, seconds: float, drawn: Path) -> Probed:
    share = max(rank_shares(run.train.global_batch, world))
    micro = share if run.train.micro_batch == "auto" else run.train.micro_batch
    steps = run.train.steps
    if steps is not None:  # as many samples as the run sees, which decides what is kept
        steps = max(1, steps * run.train.global_batch // share)
    update = {"steps": steps, "global_batch": share, "micro_batch": micro}
    alone = run.model_copy(
        update={"train": run.train.model_copy(update=update), "parallel": run.parallel.model_copy(update=_ONE)}
    )  # fmt: skip
    runtime = Runtime(alone.parallel, alone.train, planned=None, uncompiled=not_compiled(alone))
    parts = building.build(alone, runtime, None)
    open_prior(parts, drawn, lambda stage: None, lambda: False, resumed=False)
    parts.open_features(lambda stage: None, lambda: False, val=False)
    parts.steps = _MANY
    for phase in parts.phases:
        phase.stage = None  # the first is measured
    samples = parts.samples()
    with closing(parts.batches(0)) as batches:
        held = list(itertools.islice(batches, _HELD))
        # what the workers had ready by then is not their pace
        ready = 1 if samples.cheap else 2 * max(1, alone.data.workers) + _HELD
        loader = _paced(share, batches, ready, seconds)
    step = _trained(parts, share, _again(held), seconds)
    together = _trained(parts, share, parts.batches(0), seconds)
    cores = len(os.sched_getaffinity(0))
    return Probed(loader, step, together, alone.data.workers, cores, samples.cheap, share)


def _paced(share: int, batches: Iterator[Sequence[Batch]], ready: int, seconds: float) -> Spread:
    """The rate at which batches come, in about twenty stretches."""
    for _ in itertools.islice(batches, ready):
        pass
    marks = [time.perf_counter()]
    until = marks[0] + seconds
    for _ in batches:
        marks.append(time.perf_counter())
        if marks[-1] > until and len(marks) > _LEAST:
            break
    return _spread(share, marks)


def _trained(parts: Parts, share: int, batches: Generator[Any, None, None], seconds: float) -> Spread:
    """The rate of steps over these batches."""
    marks: list[float] = []

    def stop() -> bool:
        return len(marks) > _WARM + _LEAST and marks[-1] - marks[_WARM] > seconds

    never = Clock(parse_amount(_EVER, times=True), epoch_samples=parts.epoch_samples, step_samples=share, now=time.monotonic())
    job = Job(
        runtime=parts.runtime, phases=parts.phases, average=parts.average, batches=batches, prepare=parts.prepare, steps=_MANY,
        global_batch=share, epoch_samples=parts.epoch_samples, schedule=parts.schedule(), momentum=parts.momentum(),
        react=lambda progress: None, seed=parts.seed, train_mode=parts.train_mode, evaluate=None,
        save=lambda progress, improved, wait: None, wants_retry=lambda: False, stop=stop,
        beat=lambda step: marks.append(time.perf_counter()), at=lambda stage, phase=0, left=0: None, listener=Silent(),
        log_every=parts.run.track.every, evaluate_every=never, checkpoint_every=never, evaluate_at_start=False,
        lower_is_better=True, best_metric="val/loss", patience=None, min_delta=0.0, clip=parts.run.train.clip,
        max_skipped=parts.run.train.max_skipped,
    )  # fmt: skip
    with closing(batches):
        train(job, Progress())
    return _spread(share, marks[_WARM:])


def _again(held: Sequence[Sequence[Batch]]) -> Generator[Sequence[Batch], None, None]:
    yield from itertools.cycle(held)


def _spread(share: int, marks: Sequence[float]) -> Spread:
    """Quartiles of the rate, over stretches of several steps where there are many: workers deliver in bursts."""
    length = max(1, (len(marks) - 1) // 20)
    ends = marks[::length]
    rates = [share * length / (end - begin) for begin, end in itertools.pairwise(ends) if end > begin]
    if len(rates) < 2:
        rates = rates * 2 or [0.0, 0.0]
    low, middle, high = quantiles(rates, n=4)
    return low, middle, high
