"""The run file: what one training is, section by section."""

from __future__ import annotations

import re
from collections.abc import Callable
from typing import TYPE_CHECKING, Any, Literal

from pydantic import Field, field_validator, model_validator

from trainer.config.amounts import Amount, Interval, Seconds
from trainer.config.base import Section, kinds, one_of
from trainer.config.buckets import unsorted
from trainer.config.compute import Compute, unfit
from trainer.config.data import Augment as Augment
from trainer.config.data import Data as Data
from trainer.config.data import Normalize as Normalize
from trainer.config.errors import UserError, nearest
from trainer.config.learning import Strategy
from trainer.config.model import Model as Model
from trainer.config.objective import Losses
from trainer.config.optimizers import AnyOptimizer, ScheduleFree
from trainer.config.parallel import Parallel as Parallel
from trainer.config.schedules import AnySchedule, Constant, Cosine, Plateau
from trainer.config.sharding import refused
from trainer.config.targets import Facts
from trainer.config.task import Task
from trainer.config.tasks import classify

if TYPE_CHECKING:
    AnyTask = Task
    AnyStrategy = Strategy
else:
    AnyTask = one_of("trainer.config.tasks")
    AnyStrategy = one_of("trainer.config.strategies")

NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,99}")
WORD = re.compile(r"[A-Za-z0-9][A-Za-z0-9._,-]{0,99}")


def _every(text: str) -> Any:
    number, unit = text.split()
    units: dict[str, Any] = {"epoch": "epoch", "min": "second", "steps": "step"}
    return Amount(float(number) * (60 if unit == "min" else 1), units[unit], text)


class EarlyStop(Section):
    """Stop when `checkpoint.best` has not improved for `patience` evaluations."""

    patience: int = Field(ge=1)
    min_delta: float = Field(0.0, ge=0)


class Train(Compute):
    """How long, in what batches and how exactly."""

    epochs: float = Field(10, gt=0)
    steps: int | None = Field(None, ge=1, description="instead of epochs: so many optimizer steps")
    global_batch: int = Field(64, ge=1, description="samples an optimizer step sees over all ranks")
    micro_batch: int | Literal["auto"] = Field(
        "auto", description="samples in one forward pass; auto: a rank's whole share, or as much of it as is found to fit"
    )
    seed: int = Field(0, ge=0, lt=2**32)
    clip: float | None = Field(None, gt=0, description="largest norm of the gradient")
    ema: float | None = Field(None, gt=0, lt=1, description="decay a step of an average of the weights, which is then evaluated")
    max_skipped: int = Field(10, ge=0, description="steps in a row with a gradient that is not finite before the run stops")
    deterministic: bool = Field(False, description="refuse operations whose result varies between runs (slower on GPUs)")

    @field_validator("micro_batch")
    @classmethod
    def _positive(cls, value: int | str) -> int | str:
        if isinstance(value, int) and value < 1:
            raise ValueError("must be at least 1")
        return value


class Evaluate(Section):
    """When and how the validation samples are measured."""

    every: Interval = Field(default_factory=lambda: _every("1 epoch"))
    at_start: bool = Field(False, description="also before the first step")
    batch: int | None = Field(None, ge=1, description="samples in one forward pass; none: twice the micro-batch")
    early_stop: EarlyStop | None = None
    source: str | None = Field(
        None, description="samples of the task that the weights came from: at the end, how much of it was forgotten"
    )
    show: int = Field(16, ge=0, le=64, description="validation samples drawn with their predictions at each evaluation")


class Checkpoint(Section):
    """When the state is saved and what is kept."""

    every: Interval = Field(default_factory=lambda: _every("10 min"))
    keep: int = Field(3, ge=1, description="newest checkpoints to keep, beside the best")
    best: str = Field(
        "val/accuracy",
        description="the metric that chooses the best, lowest for a loss or an error, else highest; left out: accuracy of "
        "classes, map of labels, mae of numbers, psnr of a translation, the first of task.fidelity of a gan or a cycle, "
        "loss of several heads and of what else generates",
    )

    @field_validator("best")
    @classmethod
    def _metric(cls, value: str) -> str:
        if not re.fullmatch(r"val/[A-Za-z0-9_]+", value):
            raise ValueError("write a metric of the evaluation, such as val/accuracy, val/f1 or val/loss")
        return value


class WandB(Section):
    """Weights & Biases; offline when there is no key or no server."""

    project: str = "graft"
    entity: str | None = None
    group: str | None = None
    tags: list[str] = Field(default_factory=list)
    mode: Literal["auto", "offline", "disabled"] = "auto"
    timeout: Seconds = Field(15.0, gt=0, description="how long to wait for the server before going on offline")


class Track(Section):
    """What is recorded, besides metrics.jsonl."""

    every: int = Field(10, ge=1, description="steps between two points of the training curves")
    wandb: WandB | None = None


class Resources(Section):
    """What the run asks of a cluster; what is not set comes from the cluster's own file."""

    cluster: str | None = Field(None, description="name of a cluster file; none: the only one there is, or default.yaml")
    nodes: int = Field(1, ge=1)
    gpus_per_node: int | None = Field(None, ge=1)
    partition: str | None = Field(None, description="where to queue; none: as the cluster file says")
    account: str | None = Field(None, description="whom the time is charged to; none: as the cluster file says")
    time: str | None = Field(None, description="hours:minutes:seconds or days-hours:minutes:seconds", examples=["4:00:00"])

    @field_validator("cluster", "partition", "account")
    @classmethod
    def _word(cls, value: str | None) -> str | None:
        if value is not None and not WORD.fullmatch(value):
            raise ValueError("letters, digits, dots, commas, dashes and underscores only, beginning with a letter or a digit")
        return value

    @field_validator("time")
    @classmethod
    def _time(cls, value: str | None) -> str | None:
        if value is not None and not re.fullmatch(r"([0-9]+-)?[0-9]{1,2}:[0-9]{2}:[0-9]{2}", value):
            raise ValueError("write hours:minutes:seconds, such as 4:00:00, or days-hours:minutes:seconds")
        return value


class Run(Section):
    """One training."""

    name: str
    task: AnyTask = Field(default_factory=classify.Config)
    model: Model
    strategy: AnyStrategy
    data: Data
    optimizer: AnyOptimizer
    schedule: AnySchedule = Field(default_factory=Cosine)
    losses: Losses = Losses()
    train: Train = Train()
    parallel: Parallel = Parallel()
    evaluate: Evaluate = Field(default_factory=Evaluate)
    checkpoint: Checkpoint = Field(default_factory=Checkpoint)
    track: Track = Track()
    resources: Resources = Resources()

    @property
    def models(self) -> dict[str, Model]:
        """Every network that is read, by its key in the run file."""
        named = {"model": self.model, "losses.teacher": self.losses.teacher}
        named |= {f"task.{key}": model for key, model in self.task.networks.items()}
        return {key: model for key, model in named.items() if model is not None}

    @property
    def sources(self) -> dict[str, str]:
        """Where samples are read, by the key in the run file; data.val may be a part of data.train."""
        prior = getattr(self.task, "prior", None)
        named = {"data.train": self.data.train, "data.val": self.data.val, "evaluate.source": self.evaluate.source}
        named |= {"task.prior.data": None if prior is None else prior.data}
        return {key: source for key, source in named.items() if source is not None}

    @property
    def weights(self) -> dict[str, float]:
        """What losses weigh, as far as it is not 1."""
        return {**self.task.weights, **self.losses.weights}

    def moved(self, change: Callable[[Model], Model]) -> Run:
        """The run with its networks changed."""
        found: dict[str, Any] = {"model": change(self.model)}
        if self.losses.teacher is not None:
            found["losses"] = self.losses.model_copy(update={"teacher": change(self.losses.teacher)})
        if self.task.networks:
            found["task"] = self.task.moved(change)
        return self.model_copy(update=found)

    @property
    def watched(self) -> dict[str, str]:
        """The metrics that decide something, by their keys in the run file."""
        plateau = self.schedule.metric if isinstance(self.schedule, Plateau) else None
        return {"checkpoint.best": self.checkpoint.best} | ({} if plateau is None else {"schedule.metric": plateau})

    def fits(self, facts: Facts) -> None:
        """Raises UserError where the training data, or the metrics that are asked for, are not of the task."""
        self.task.learnt(facts)
        known = [f"val/{metric}" for metric in self.task.measured(facts) or ()]
        for key, metric in self.watched.items():
            if metric not in known:
                raise UserError(f"{key} is '{metric}', which is not measured{nearest(metric, known)}")

    @property
    def optimizer_identity(self) -> str:
        """Which optimizer it is: another one cannot go on with its state."""
        return self.optimizer.identity + ("+adatask" if self.losses.balance.kind == "adatask" else "")

    @field_validator("name")
    @classmethod
    def _name(cls, value: str) -> str:
        if not NAME.fullmatch(value):
            raise ValueError("1 to 100 letters, digits, dots, dashes or underscores, beginning with a letter or a digit")
        return value

    @model_validator(mode="before")
    @classmethod
    def _of_the_task(cls, value: Any) -> Any:
        """A task without a kind classifies; the best is chosen by the task's own metric, where none is named."""
        task = value.get("task", {}) if isinstance(value, dict) else None
        checkpoint = value.get("checkpoint", {}) if isinstance(value, dict) else None
        if not isinstance(task, dict):
            return value
        task = {"kind": "classify", **task}
        value = {**value, "task": task}
        known = kinds("trainer.config.tasks").get(str(task["kind"]))
        if isinstance(checkpoint, dict) and "best" not in checkpoint and known is not None:
            assert issubclass(known, Task)
            value["checkpoint"] = {**checkpoint, "best": f"val/{known.chosen_by(task)}"}
        return value

    @model_validator(mode="after")
    def _generates(self) -> Run:
        self.task.goes_with(self)
        if not self.task.generates:
            return self
        kind = self.task.kind
        if self.data.normalize not in ("auto", "half"):
            raise ValueError(f"data.normalize: task {kind} makes images of pixels from -1 to 1; leave it out")
        if self.losses.teacher is not None or any(loss.kind != "l2_sp" for loss in self.losses.add.values()):
            raise ValueError(
                f"losses: of the further losses only l2_sp goes with task {kind}; leave the others and the teacher out"
            )
        if getattr(self.task, "fidelity", None) is not None and self.data.val is None:
            raise ValueError("task.fidelity is measured at evaluations, which need validation data; set data.val")
        if self.evaluate.source is not None:
            raise ValueError(f"evaluate.source: what task {kind} forgets is not measured by samples of classes; leave it out")
        return self

    @model_validator(mode="after")
    def _consistent(self) -> Run:
        if self.evaluate.early_stop is not None and self.data.val is None:
            raise ValueError("evaluate.early_stop needs validation data; set data.val")
        names = self.task.measured()
        known = [f"val/{metric}" for metric in names or ()]
        for key, metric in self.watched.items():
            if names is not None and metric not in known:
                raise ValueError(f"{key} is '{metric}', which {self.task.kind} does not measure{nearest(metric, known)}")
        if isinstance(self.schedule, Plateau) and self.data.val is None:
            raise ValueError("schedule.kind: plateau needs validation data; set data.val")
        if isinstance(self.optimizer, ScheduleFree):
            if not isinstance(self.schedule, Constant):
                raise ValueError("optimizer.kind: schedule_free has no schedule; write schedule: {kind: constant}, with a warmup")
            if self.train.ema is not None:
                raise ValueError("optimizer.kind: schedule_free averages the weights itself; leave train.ema out")
        if (held := self.losses.of("start")) and self.model.weights == "none" and not self.model.source.startswith("python:"):
            raise ValueError(f"losses.add.{held[0]} holds to what came with the weights, and model.weights is none; leave it out")
        balance = self.losses.balance.kind
        if balance == "adatask":
            if self.optimizer.kind not in ("adam", "adamw"):
                raise ValueError(
                    f"losses.balance: adatask keeps Adam's moments apart, which optimizer.kind: {self.optimizer.kind} has not; "
                    "write adam or adamw"
                )
            if self.train.clip is not None:
                raise ValueError("losses.balance: adatask takes gradients that train.clip does not clip; leave clip out")
        if self.losses.balance.own_gradients and self.train.precision == "fp16":
            raise ValueError(f"losses.balance: {balance} takes gradients that fp16 does not scale; write train.precision: bf16")
        if (why := refused(self) or unfit(self) or unsorted(self)) is not None:
            raise ValueError(why)
        norm = self.data.normalize
        if isinstance(norm, Normalize) and not len(norm.mean) == len(norm.std) == self.model.adapt.in_channels:
            raise ValueError(
                f"data.normalize has {len(norm.mean)} means and {len(norm.std)} deviations "
                f"for model.adapt.in_channels {self.model.adapt.in_channels}"
            )
        if self.data.mix is not None and self.task.kind != "classify":
            raise ValueError(f"data.mix mixes the classes of two images, which task {self.task.kind} has not; leave data.mix out")
        return self
