"""Optimizers and schedules: the config classes."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import BeforeValidator, Field

from trainer.config.amounts import Amount, TrainingAmount, parse_amount
from trainer.config.base import Kind

Positive = Annotated[float, Field(gt=0)]
Share = Annotated[float, Field(ge=0, lt=1)]


class Optimizer(Kind):
    """What every optimizer has."""

    lr: Positive
    weight_decay: float = Field(0.0, ge=0)
    decay_norms: bool = Field(True, description="false: no weight decay on biases and normalisation (1-d parameters)")


class SGD(Optimizer):
    """Stochastic gradient descent with momentum."""

    kind: Literal["sgd"] = "sgd"
    momentum: Share = 0.9
    nesterov: bool = False


class Adam(Optimizer):
    """Adam (Kingma and Ba 2015); weight_decay is added to the gradient."""

    kind: Literal["adam"] = "adam"
    betas: tuple[Share, Share] = Field((0.9, 0.999), strict=False)
    eps: Positive = 1e-8


class AdamW(Optimizer):
    """Adam with decoupled weight decay (Loshchilov and Hutter 2019)."""

    kind: Literal["adamw"] = "adamw"
    weight_decay: float = Field(0.01, ge=0)
    betas: tuple[Share, Share] = Field((0.9, 0.999), strict=False)
    eps: Positive = 1e-8


AnyOptimizer = Annotated[SGD | Adam | AdamW, Field(discriminator="kind")]


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


AnySchedule = Annotated[Constant | Cosine | Linear | Step, Field(discriminator="kind")]
