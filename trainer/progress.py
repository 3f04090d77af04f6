"""Where a run stands: what a checkpoint must hold beside tensors."""

from __future__ import annotations

from dataclasses import asdict, dataclass, field, fields
from typing import Any

from trainer.config.amounts import Amount


@dataclass
class Progress:
    """Counters of a run, the same on every rank.

    `losses`, `rates` and `parts` (the columns of a phase's record) are of the steps that no point of the record covers yet;
    `evaluated` and `saved` are the samples at which that last happened; `waited` counts evaluations without improvement;
    `damping` is what a plateau has made of the learning rate, `plateau_*` what it goes by; `productive` is the time of the steps
    that count.
    """

    step: int = 0
    samples: int = 0
    points: int = 0
    losses: list[float] = field(default_factory=list)
    rates: list[float] = field(default_factory=list)
    parts: list[list[float]] = field(default_factory=list)
    epoch_loss: float = 0.0
    epoch_steps: int = 0
    evaluated: int = -1
    saved: int = 0
    best: float | None = None
    best_step: int = 0
    waited: int = 0
    damping: float = 1.0
    plateau_best: float | None = None
    plateau_waited: int = 0
    skipped: int = 0
    skipped_in_row: int = 0
    productive: float = 0.0
    metrics: dict[str, float] = field(default_factory=dict)
    best_metrics: dict[str, float] = field(default_factory=dict)

    def as_dict(self) -> dict[str, Any]:
        return asdict(self)

    @classmethod
    def from_dict(cls, value: dict[str, Any]) -> Progress:
        known = {f.name for f in fields(cls)}
        return cls(**{key: item for key, item in value.items() if key in known})


class Clock:
    """Whether something is due `every` so much: by samples (a pure function of progress) or by the time since the last."""

    def __init__(self, every: Amount, *, epoch_samples: int, step_samples: int, now: float) -> None:
        timed = every.unit == "second"
        self.seconds = every.value if timed else None
        self._samples = 0 if timed else every.samples(epoch_samples=epoch_samples, step_samples=step_samples)
        self._last = now

    def due(self, samples: int, done: int) -> bool:
        """By samples: whether a multiple of the interval was passed since `done`."""
        return self._samples > 0 and samples // self._samples > max(0, done) // self._samples

    def late(self, now: float) -> bool:
        """By time: whether the interval has passed since `reset`."""
        return self.seconds is not None and now - self._last >= self.seconds

    def reset(self, now: float) -> None:
        self._last = now
