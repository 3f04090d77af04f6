"""The training loop, from top to bottom. It knows phases, progress and ranks; it knows no task, no model and no strategy."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Generator, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import torch

from trainer.best import judge
from trainer.config import GraftError
from trainer.optim import Average, FreeAverage, set_momentum
from trainer.progress import Clock, Progress
from trainer.runtime import Runtime
from trainer.tasks.base import Batch, Evaluation, Phase
from trainer.timing import Timing

STOP, SAVE, EVALUATE = 1, 2, 4
SCALER_PATIENCE = 20  # fp16 halves its scale on each of the first steps until nothing overflows


class Listener(Protocol):
    """What becomes of figures."""

    def point(self, values: dict[str, Any], progress: Progress) -> None:
        """Record a point of the curves."""

    def evaluated(self, evaluation: Evaluation, progress: Progress, *, final: bool) -> None:
        """Show an evaluation."""


class At(Protocol):
    """Hears where in a step the training is."""

    def __call__(self, stage: str, phase: int = 0, left: int = 0, /) -> None:
        """Note it, within a fraction of a microsecond."""


@dataclass
class Job:
    """All that a training is made of, assembled by `session`.

    `batches` gives the micro-batches of this rank for one optimizer step; `prepare` brings one to the device, normalised.
    `schedule(samples)` is the factor on the learning rate, `momentum(samples)` the momentum where it moves; `react(progress)`
    comes after an evaluation and may damp the learning rate; `seed(step, rank, micro-batch)` what dropout is seeded with.
    `save(progress, is the best yet, wait until it is durable)`; `beat(step)` comes after every step,
    `at(stage, phase, micro-batches left)` whenever something begins that may take long. `steps` are optimizer steps,
    `global_batch` and `epoch_samples` samples; `patience` counts evaluations.
    """

    runtime: Runtime
    phases: Sequence[Phase]
    average: Average | FreeAverage | None
    batches: Generator[Sequence[Any], None, None]
    prepare: Callable[[Any], Batch]
    steps: int
    global_batch: int
    epoch_samples: int
    schedule: Callable[[int], float]
    momentum: Callable[[int], float] | None
    react: Callable[[Progress], None]
    seed: Callable[[int, int, int], int]
    train_mode: Callable[[], None]
    evaluate: Callable[[], Evaluation] | None
    save: Callable[[Progress, bool, bool], None]
    wants_retry: Callable[[], bool]
    stop: Callable[[], bool]
    beat: Callable[[int], None]
    at: At
    listener: Listener
    log_every: int
    evaluate_every: Clock
    checkpoint_every: Clock
    evaluate_at_start: bool
    lower_is_better: bool
    best_metric: str
    patience: int | None
    min_delta: float
    clip: float | None
    max_skipped: int


def train(job: Job, progress: Progress) -> bool:
    """Train until the last step, an early stop or a wish to stop; true when the training is complete.

    Evaluation and saving are decided between steps, from progress alone: a run that was stopped before an evaluation that was
    due makes it up when it is started again.
    """
    runtime = job.runtime
    agreement = runtime.agreement()
    agreement.ask(STOP * job.stop())
    wishes = agreement.settle() if runtime.world > 1 else STOP * job.stop()
    job.train_mode()
    taking = Step(job)
    while True:
        last = progress.step >= job.steps or exhausted(job, progress)
        if wishes & STOP and not last:
            taking.drain(progress)
            job.at("save")
            job.save(progress, False, True)
            return False
        improved = False
        due = job.evaluate_every.due(progress.samples, progress.evaluated) or (job.evaluate_at_start and progress.evaluated < 0)
        if job.evaluate and progress.evaluated < progress.samples and (due or last or wishes & EVALUATE):
            taking.drain(progress)
            job.at("evaluate")
            evaluation = job.evaluate()
            job.at("record")
            improved = judge(job, progress, evaluation)
            job.react(progress)
            # Decided the same on every rank: the figures are sums over all of them.
            last = last or exhausted(job, progress)
            job.listener.evaluated(evaluation, progress, final=last)
            job.evaluate_every.reset(time.monotonic())
            job.train_mode()
        if last or improved or wishes & SAVE or job.checkpoint_every.due(progress.samples, progress.saved):
            taking.drain(progress)
            if last and progress.losses:
                taking.point(progress)  # an early stop between two points
            job.at("save")
            job.save(progress, improved, last)
            job.checkpoint_every.reset(time.monotonic())
        if last:
            return True

        taking.step(progress)

        if progress.step % job.log_every == 0 or progress.step == job.steps:
            taking.point(progress)
        now = time.monotonic()
        wishes = agreement.ask(
            STOP * job.stop()
            | SAVE * (runtime.main and (job.checkpoint_every.late(now) or job.wants_retry()))
            | EVALUATE * (runtime.main and job.evaluate_every.late(now))
        )


def exhausted(job: Job, progress: Progress) -> bool:
    """Whether early stopping ends the run here."""
    return job.patience is not None and progress.waited >= job.patience


class Step:
    """Takes optimizer steps and keeps their losses until a point of the record covers them."""

    def __init__(self, job: Job) -> None:
        self._job = job
        self._losses: list[torch.Tensor] = []
        self._waits: list[float] = []  # seconds, of the same steps
        self._timing = Timing(job.global_batch)
        self._scale = job.runtime.world / job.global_batch  # a mean over the ranks of sums over samples is the global mean
        self._limit = job.max_skipped if job.runtime.scaler is None else max(job.max_skipped, SCALER_PATIENCE)
        widths = [1 + len(phase.columns) for phase in job.phases]
        self._places = [sum(widths[:number]) for number in range(len(widths))]  # of the phases' losses in a row of the record
        self._unsound_before = set(self._unsound())

    def _unsound(self) -> list[str]:
        """Buffers that are not finite: some are meant so, such as a mask of minus infinity."""
        named = [item for phase in self._job.phases for item in phase.network.named_buffers()]
        return [name for name, buffer in named if buffer.is_floating_point() and not buffer.isfinite().all()]

    def step(self, progress: Progress) -> None:
        """One optimizer step of every phase over one global batch."""
        job, runtime = self._job, self._job.runtime
        job.at("data")
        asked = time.perf_counter()
        micro_batches = next(job.batches)
        began = time.perf_counter()
        factor = job.schedule(progress.samples) * progress.damping
        sound, taken = list[bool](), list[torch.Tensor]()  # of each phase
        self._stage(progress.samples)
        for number, phase in enumerate(job.phases):
            engine = phase.engine
            for group, rate in engine.rates:
                group["lr"] = rate * factor
            if job.momentum is not None:
                set_momentum(engine.optimizer, job.momentum(progress.samples))
            seen: torch.Tensor | None = None
            for index, raw in enumerate(micro_batches):
                left = len(micro_batches) - index
                job.at("forward", number, left)
                batch = job.prepare(raw)
                runtime.reseed(job.seed(progress.step, runtime.rank, index))
                with engine.accumulating(left == 1):
                    each = phase.loss(engine.module, batch)
                    sums = each.sum(dim=0) * self._scale
                    loss = sums[0] if phase.columns else sums
                    job.at("backward", number, left)
                    engine.backward(loss)
                seen = sums.detach() if seen is None else seen + sums.detach()
            assert seen is not None
            job.at("optimizer", number)
            taken.append(seen.reshape(-1))
            norm = engine.norm()  # the same on every rank: all come to the same decision
            good = math.isfinite(norm)
            if phase.settle is not None:
                phase.settle(progress.samples + job.global_batch, good=good)
            if good:
                engine.step(norm, job.clip)
            engine.clear()
            sound.append(good)
        self._losses.append(torch.cat(taken))
        self._waits.append(began - asked)
        if runtime.scaler:
            runtime.scaler.update()
        progress.rates.append(job.phases[0].engine.rates[0][1] * factor)
        progress.step += 1
        progress.samples += job.global_batch
        job.at("between")  # first: whoever is held up in `beat` is behind those that begin the next step
        job.beat(progress.step)
        if sound[0] and job.average is not None:  # it is of the first network, whatever became of the step of another
            job.average.update(progress.step)
        if all(sound):
            progress.skipped_in_row = 0
        else:
            self._skip(progress)
        ended = time.perf_counter()
        progress.productive += ended - began
        self._timing.step(ended - asked)
        if progress.samples // job.epoch_samples > (progress.samples - job.global_batch) // job.epoch_samples:
            self._epoch(progress)

    def _stage(self, samples: int) -> None:
        """Let begin what begins to learn at these samples."""
        for phase in self._job.phases:
            if phase.stage is not None and phase.stage(samples):
                self._job.train_mode()

    def _skip(self, progress: Progress) -> None:
        """A gradient that is not finite changes nothing; too many in a row, or a spoilt state, stop all ranks at one step."""
        progress.skipped += 1
        progress.skipped_in_row += 1
        losses = torch.zeros(self._job.runtime.world, dtype=torch.float64)
        losses[self._job.runtime.rank] = self._losses[-1].double().cpu()[self._places].sum()
        broken = self._job.runtime.sum_host(torch.isfinite(losses).logical_not().int()).tolist()
        ranks = [str(rank) for rank, is_broken in enumerate(broken) if is_broken]
        where = f"the loss is not finite on rank {', '.join(ranks)}" if ranks else "the loss is finite, its gradient is not"
        # Buffers follow rank 0: those of the others are made good at their next forward pass.
        spoilt = self._job.runtime.from_main([name for name in self._unsound() if name not in self._unsound_before])
        if spoilt:
            raise GraftError(
                f"step {progress.step}: {where}, and it spoilt the statistics of {spoilt[0]}; the checkpoint before is finite. "
                "Lower optimizer.lr, set train.clip, or look for bad input"
            )
        if progress.skipped_in_row > self._limit:
            raise GraftError(
                f"step {progress.step}: {progress.skipped_in_row} steps in a row without a finite gradient ({where}); the last "
                "checkpoint is finite. Lower optimizer.lr, set train.clip, or raise train.max_skipped"
            )
        self._job.listener.point({"skipped": float(progress.skipped), "why": where}, progress)

    def drain(self, progress: Progress) -> None:
        """Turn the losses kept on the device into numbers, each the mean over all ranks."""
        if self._losses:
            values = torch.stack(self._losses).double().cpu()
            values = torch.cat([values, torch.tensor(self._waits, dtype=torch.float64).unsqueeze(1)], dim=1)
            self._losses, self._waits = [], []
            values = self._job.runtime.sum_host(values) / self._job.runtime.world
            for value, *parts, waited in values.tolist():
                self._timing.waited(waited)
                progress.losses.append(value)
                if parts:
                    progress.parts.append(parts)
                if math.isfinite(value):
                    progress.epoch_loss += value
                    progress.epoch_steps += 1

    def point(self, progress: Progress) -> None:
        """Record the mean loss since the last point."""
        self.drain(progress)
        values = {"train/loss": _mean(progress.losses), "lr": progress.rates[-1]}
        first, *others = self._job.phases
        names = [*first.columns, *(name for phase in others for name in (f"loss/{phase.name}", *phase.columns))]
        values |= {name: _mean(column) for name, column in zip(names, zip(*progress.parts, strict=True), strict=False)}
        progress.losses, progress.rates, progress.parts = [], [], []
        self._job.listener.point(values | self._timing.figures(), progress)

    def _epoch(self, progress: Progress) -> None:
        """Record the mean loss of an epoch that ended within this step."""
        self.drain(progress)
        mean = progress.epoch_loss / progress.epoch_steps if progress.epoch_steps else math.nan
        progress.epoch_loss, progress.epoch_steps = 0.0, 0
        self._job.listener.point({"train/epoch_loss": mean}, progress)


def _mean(values: Sequence[float]) -> float:
    """The mean of those that are finite."""
    finite = [value for value in values if math.isfinite(value)]
    return math.fsum(finite) / len(finite) if finite else math.nan
