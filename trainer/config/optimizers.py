"""Optimizers: the config classes."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field

from trainer.config.base import Kind

Positive = Annotated[float, Field(gt=0)]
Share = Annotated[float, Field(ge=0, lt=1)]


class Optimizer(Kind):
    """What every optimizer has."""

    lr: Positive
    weight_decay: float = Field(0.0, ge=0)
    decay_norms: bool = Field(True, description="false: no weight decay on biases and normalisation (1-d parameters)")

    @property
    def identity(self) -> str:
        """Which optimizer it is: another one cannot go on with its state."""
        return self.kind


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


Argument = bool | int | float | str | list[float] | None


class Named(Optimizer):
    """An optimizer of a library, by the library's own name."""

    name: str = ""
    args: dict[str, Argument] = Field(default_factory=dict, description="further arguments, as the library calls them")

    @property
    def identity(self) -> str:
        return f"{self.kind}:{self.name}" if self.name else self.kind


class Timm(Named):
    """Any of timm's (`timm.optim.list_optimizers()`): lamb, lars, lion, adan, muon, … and bitsandbytes' 8-bit ones."""

    kind: Literal["timm"] = "timm"
    name: str = Field(examples=["lamb", "lars", "lion", "adan", "muon", "bnbadamw8bit"])


class Torch(Named):
    """Any of torch.optim's classes that takes one step a gradient: NAdam, RAdam, RMSprop, Adafactor, …"""

    kind: Literal["torch"] = "torch"
    name: str = Field(examples=["NAdam", "RAdam", "RMSprop", "Adagrad"])


class ScheduleFree(Named):
    """Schedule-free learning (Defazio et al. 2024): no schedule but a warm-up; evaluated, saved and exported with its average."""

    kind: Literal["schedule_free"] = "schedule_free"
    name: Literal["sgd", "adamw", "radam"] = "adamw"


class Prodigy(Named):
    """Prodigy (Mishchenko and Defazio 2024): finds the size of its steps; the learning rate is a factor, best left at 1."""

    kind: Literal["prodigy"] = "prodigy"
    lr: Positive = 1.0


AnyOptimizer = Annotated[SGD | Adam | AdamW | Timm | Torch | ScheduleFree | Prodigy, Field(discriminator="kind")]
