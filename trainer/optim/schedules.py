"""Learning-rate schedules as functions of samples seen."""

from __future__ import annotations

import math
from collections.abc import Callable

from trainer.config import GraftError
from trainer.config.schedules import (
    WSD,
    Cosine,
    CosineRestarts,
    InverseSqrt,
    Linear,
    OneCycle,
    Plateau,
    Polynomial,
    Schedule,
    Step,
)
from trainer.progress import Progress
from trainer.rundir.metric import lower_is_better


def build_schedule(config: Schedule, *, total: int, epoch_samples: int, step_samples: int) -> Callable[[int], float]:
    """The factor on the learning rate as a function of the samples seen before a step, in [0, total)."""
    warmup = config.warmup_samples(total=total, epoch_samples=epoch_samples, step_samples=step_samples)
    amount = config.every if isinstance(config, Step | CosineRestarts) else getattr(config, "scale", None)
    every = amount.samples(epoch_samples=epoch_samples, step_samples=step_samples) if amount is not None else 1

    def factor(samples: int) -> float:
        if samples < warmup:
            # The first step already learns: its end, not its start, stands on the ramp.
            ramp = min(1.0, (samples + step_samples) / warmup)
            if isinstance(config, OneCycle):
                return _half_cosine(config.start, 1.0, ramp)
            return config.warmup_start + (1 - config.warmup_start) * ramp
        done = min(1.0, (samples - warmup) / max(1, total - warmup))
        match config:
            case Cosine():
                return config.end + (1 - config.end) * (1 + math.cos(math.pi * done)) / 2
            case Linear():
                return 1 - (1 - config.end) * done
            case Step():
                return float(config.gamma ** (samples // every))
            case OneCycle():
                return _half_cosine(1.0, config.end, done)
            case WSD():
                return _decayed(config, samples, total)
            case Polynomial():
                return config.end + (1 - config.end) * float((1 - done) ** config.power)
            case CosineRestarts():
                cycle, place = divmod(samples - warmup, every)
                return float(config.decay**cycle) * _half_cosine(1.0, config.end, place / every)
            case InverseSqrt():
                return 1 / math.sqrt(1 + (samples - warmup) / every)
        return 1.0

    return factor


def build_momentum(config: Schedule, *, total: int, epoch_samples: int, step_samples: int) -> Callable[[int], float] | None:
    """The momentum (or the first beta) as a function of samples, where the schedule moves it against the learning rate."""
    if not isinstance(config, OneCycle) or config.momentum is None:
        return None
    low, high = config.momentum
    warmup = config.warmup_samples(total=total, epoch_samples=epoch_samples, step_samples=step_samples)

    def momentum(samples: int) -> float:
        if samples < warmup:
            return _half_cosine(high, low, min(1.0, (samples + step_samples) / warmup))
        return _half_cosine(low, high, min(1.0, (samples - warmup) / max(1, total - warmup)))

    return momentum


def _half_cosine(first: float, last: float, done: float) -> float:
    """From `first` to `last` along half a cosine."""
    return last + (first - last) * (1 + math.cos(math.pi * done)) / 2


def _decayed(config: WSD, samples: int, total: int) -> float:
    begin = total * (1 - config.decay)
    if samples < begin:
        return 1.0
    done = min(1.0, (samples - begin) / max(1.0, total - begin))
    left = {"linear": 1 - done, "sqrt": 1 - math.sqrt(done), "cosine": (1 + math.cos(math.pi * done)) / 2}[config.shape]
    return config.end + (1 - config.end) * left


def reaction(config: Schedule, best: str) -> Callable[[Progress], None]:
    """What follows from an evaluation: a plateau damps the learning rate, on every rank alike; other schedules do nothing.

    `best` is the metric that is watched when the plateau names none.
    """
    if not isinstance(config, Plateau):
        return lambda progress: None
    metric = config.metric or best
    sign = -1.0 if lower_is_better(metric) else 1.0

    def react(progress: Progress) -> None:
        if metric not in progress.metrics:
            raise GraftError(f"schedule.metric is '{metric}'; the evaluation gives {', '.join(progress.metrics)}")
        value = progress.metrics[metric]
        if progress.plateau_best is None or sign * (value - progress.plateau_best) > config.min_delta:
            progress.plateau_best, progress.plateau_waited = value, 0
            return
        progress.plateau_waited += 1
        if progress.plateau_waited > config.patience:
            progress.plateau_waited = 0
            progress.damping = max(config.end, progress.damping * config.gamma)

    return react
