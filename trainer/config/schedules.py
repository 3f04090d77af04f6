"""Learning-rate schedules: the config classes."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import BeforeValidator, Field

from trainer.config.amounts import Amount, TrainingAmount, parse_amount
from trainer.config.base import Kind

Share = Annotated[float, Field(ge=0, lt=1)]


def _warmup(value: Any) -> Any:
    if isinstance(value, str | Amount):
        return parse_amount(value, times=False)
    if isinstance(value, bool) or not isinstance(value, int | float) or not 0 <= value < 1:
        raise ValueError("write a share of the training from 0 to below 1, or an amount such as '5 epochs'")
    return float(value)


Warmup = Annotated[Share | TrainingAmount, BeforeValidator(_warmup)]


class Schedule(Kind):
    """The learning rate as a function of samples seen; `warmup` is a share of the training (0.05) or an amount (`5 epochs`)."""

    warmup: Warmup = 0.0
    warmup_start: float = Field(0.0, ge=0, le=1, description="share of the learning rate at the first sample")

    def warmup_samples(self, *, total: int, epoch_samples: int, step_samples: int) -> int:
        """The length of the warm-up in samples."""
        if isinstance(self.warmup, Amount):
            return self.warmup.samples(epoch_samples=epoch_samples, step_samples=step_samples)
        return round(self.warmup * total)


class Constant(Schedule):
    """The learning rate as given."""

    kind: Literal["constant"] = "constant"


class Cosine(Schedule):
    """Half a cosine from the learning rate to `end` times it (Loshchilov and Hutter 2017, without restarts)."""

    kind: Literal["cosine"] = "cosine"
    end: float = Field(0.0, ge=0, le=1)


class Linear(Schedule):
    """A straight line from the learning rate to `end` times it."""

    kind: Literal["linear"] = "linear"
    end: float = Field(0.0, ge=0, le=1)


class Step(Schedule):
    """Multiplied by `gamma` after every `every`."""

    kind: Literal["step"] = "step"
    every: TrainingAmount
    gamma: float = Field(0.1, gt=0, le=1)


class OneCycle(Schedule):
    """Up along half a cosine, then down below the start (Smith and Topin 2018); the momentum goes the other way."""

    kind: Literal["one_cycle"] = "one_cycle"
    warmup: Warmup = 0.3
    start: float = Field(0.04, gt=0, le=1, description="share of the learning rate at the first sample")
    end: float = Field(4e-6, ge=0, le=1, description="share of the learning rate at the last sample")
    momentum: tuple[Share, Share] | None = Field(
        (0.85, 0.95), strict=False, description="lowest and highest momentum (Adam's first beta); none: it stays"
    )


class WSD(Schedule):
    """Warm-up, a long stable phase, and a decay at the end (Hu et al. 2024; sqrt: Hägele et al. 2024)."""

    kind: Literal["wsd"] = "wsd"
    decay: float = Field(0.2, gt=0, le=1, description="share of the training that the decay takes")
    shape: Literal["linear", "sqrt", "cosine"] = "sqrt"
    end: float = Field(0.0, ge=0, le=1)


class Polynomial(Schedule):
    """(1 - share done) to the power of `power`, down to `end`."""

    kind: Literal["polynomial"] = "polynomial"
    power: float = Field(2.0, gt=0)
    end: float = Field(0.0, ge=0, le=1)


class CosineRestarts(Schedule):
    """Cosines of length `every`, each `decay` times as high as the one before (SGDR: Loshchilov and Hutter 2017)."""

    kind: Literal["cosine_restarts"] = "cosine_restarts"
    every: TrainingAmount
    end: float = Field(0.0, ge=0, le=1)
    decay: float = Field(1.0, gt=0, le=1)


class InverseSqrt(Schedule):
    """1 / sqrt(1 + samples since the warm-up / scale) (Zhai et al. 2022)."""

    kind: Literal["inverse_sqrt"] = "inverse_sqrt"
    scale: TrainingAmount


class Plateau(Schedule):
    """Multiplied by `gamma` whenever the metric has not improved for more than `patience` evaluations."""

    kind: Literal["plateau"] = "plateau"
    metric: str | None = Field(None, description="a metric of the evaluation, such as val/loss; none: checkpoint.best")
    gamma: float = Field(0.1, gt=0, lt=1)
    patience: int = Field(3, ge=0, description="evaluations without improvement that are borne")
    min_delta: float = Field(0.0, ge=0, description="a smaller gain is none")
    end: float = Field(1e-4, ge=0, lt=1, description="share of the learning rate that it does not go below")


AnySchedule = Annotated[
    Constant | Cosine | Linear | Step | OneCycle | WSD | Polynomial | CosineRestarts | InverseSqrt | Plateau,
    Field(discriminator="kind"),
]
