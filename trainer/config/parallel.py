"""The section `parallel` of the run file: how the ranks work together."""

from __future__ import annotations

from typing import Literal

from pydantic import Field, field_validator, model_validator

from trainer.config.amounts import Seconds
from trainer.config.base import Section

Kind = Literal["ddp", "zero1", "zero2", "zero3", "fsdp"]
CUTS_WEIGHTS = ("zero3", "fsdp")  # no rank holds the network whole


class Parallel(Section):
    """How the ranks work together."""

    kind: Kind = Field(
        "ddp",
        description="ddp: every rank holds everything; zero1: the optimizer's state is cut over the ranks; zero2: also the "
        "gradients; zero3, fsdp: also the weights",
    )
    offload: Literal["none", "cpu", "nvme"] = Field(
        "none", description="where the optimizer's state (zero3, fsdp: and the weights) is kept while it is not needed"
    )
    reshard_after_forward: bool = Field(
        True, description="fsdp: false keeps gathered weights until the backward pass: more memory, fewer messages"
    )
    device: Literal["auto", "cpu", "cuda"] = "auto"
    processes: int | Literal["auto"] = Field("auto", description="ranks on this machine; auto: one a GPU, or one on a CPU")
    threads: int | None = Field(None, ge=1, description="CPU threads a rank; none: the cores over the ranks")
    timeout: Seconds = Field(600.0, gt=0, description="how long nothing may happen before the run is given up")

    @field_validator("processes")
    @classmethod
    def _positive(cls, value: int | str) -> int | str:
        if isinstance(value, int) and value < 1:
            raise ValueError("must be at least 1")
        return value

    @model_validator(mode="after")
    def _fits(self) -> Parallel:
        if self.offload == "nvme":
            raise ValueError(
                "offload: nvme keeps the optimizer's state in files of DeepSpeed's own, out of which no checkpoint can be made "
                "yet; write offload: cpu"
            )
        if self.offload != "none" and self.kind == "ddp":
            raise ValueError(
                f"offload: {self.offload} takes away what a rank holds of shares, and ddp has none; write kind: zero2"
            )
        if not self.reshard_after_forward and self.kind != "fsdp":
            raise ValueError(f"reshard_after_forward is of fsdp, and kind is {self.kind}; leave it out")
        return self


def kind_of(parallel: Parallel, world: int) -> Kind:
    """How so many ranks share: one alone has nobody to share with, and trains as under ddp, unless it offloads."""
    return "ddp" if world == 1 and parallel.offload == "none" else parallel.kind
