"""How a step is computed: keys of `train` that change its speed and its memory, and results by rounding at most."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Literal

from pydantic import Field, field_validator

from trainer.config.base import Section

if TYPE_CHECKING:
    from trainer.config.run import Run

FUSED = ("sgd", "adam", "adamw")  # optimizers that torch has in one kernel


class Compute(Section):
    """In what numbers, in what order of memory, by what code."""

    precision: Literal["fp32", "bf16", "fp16"] = "fp32"
    tf32: bool | Literal["auto"] = Field(
        "auto", description="products of 32-bit numbers rounded to 10 bits of mantissa; auto: on GPUs that have it (Ampere, 8.0)"
    )
    channels_last: bool | Literal["auto"] = Field(
        "auto", description="the order of convolutions' weights and images in memory; auto: on a GPU, where windows overlap"
    )
    compile: Literal["none", "auto", "blocks", "whole"] = Field(
        "none", description="torch.compile, of each block or of the whole network; auto: blocks on a GPU that it works on"
    )
    checkpointing: bool = Field(
        False, description="keep of each block its input alone, and work the rest out again in the backward pass"
    )
    fused: bool | Literal["auto"] = Field(
        "auto", description="the optimizer's step in one kernel (sgd, adam, adamw); auto: on a GPU"
    )

    @field_validator("precision", mode="before")
    @classmethod
    def _none_of_8_bits(cls, value: Any) -> Any:
        if value == "fp8":
            raise ValueError(
                "fp8 is not built: it puts layers of torchao or Transformer Engine in the place of linear ones, which need a GPU "
                "of compute capability 8.9; write bf16"
            )
        return value


def unfit(run: Run) -> str | None:
    """What of it does not go together with the rest of a run, and what to write instead; none where all does."""
    train, kind, balance = run.train, run.parallel.kind, run.losses.balance.kind
    if train.compile in ("blocks", "whole"):
        if (why := not_compiled(run)) is not None:
            return f"train.compile: {train.compile} does not go with {why}; write none"
        if train.compile == "whole" and train.checkpointing:
            return "train.compile: whole leaves no blocks for train.checkpointing to work out again; write blocks"
        if train.compile == "whole" and kind == "fsdp":
            return "train.compile: whole does not go with parallel.kind: fsdp, which gathers block by block; write blocks"
    if train.checkpointing and kind == "zero3":
        return "train.checkpointing: parallel.kind zero3 lets go of weights between the passes of a block; write fsdp, or zero2"
    if train.channels_last is True and kind != "ddp":
        return f"train.channels_last: parallel.kind {kind} holds weights in flat rows; leave it out, or write parallel.kind: ddp"
    if train.fused is True and not fusable(run):
        if run.parallel.offload != "none":
            return "train.fused: what parallel.offload keeps on the host is moved there; leave it out"
        what = f"optimizer.kind: {run.optimizer.kind}" if run.optimizer.kind not in FUSED else f"losses.balance: {balance}"
        return f"train.fused: torch has {', '.join(FUSED)} in one kernel, and not {what}; leave it out"
    return None


def not_compiled(run: Run) -> str | None:
    """The key with which nothing is compiled; none where something may be."""
    if run.losses.balance.own_gradients:
        return f"losses.balance: {run.losses.balance.kind}, which goes back through the network several times"
    if run.task.duels:
        return "task.kind: gan, whose penalty takes gradients of gradients"
    if run.data.buckets is not None:
        return "data.buckets, of whose sizes the code that is compiled would depend on which came first"
    if run.parallel.kind == "zero3":
        return "parallel.kind: zero3, which gathers weights in between"
    return None


def words(run: Run, device: str) -> str:
    """What the keys come to on a device (`cpu`, `cuda`), as far as it is known without the network."""
    train, cuda = run.train, device == "cuda"
    flat = run.parallel.kind != "ddp"
    found: list[str] = [train.precision]
    if train.tf32 is True or (train.tf32 == "auto" and cuda):
        found.append("tf32" if train.tf32 is True else "tf32 where the GPU has it")
    if train.channels_last is True or (train.channels_last == "auto" and cuda and not flat):
        found.append("channels last" if train.channels_last is True else "channels last where windows overlap")
    if train.compile in ("blocks", "whole"):
        found.append("compiled whole" if train.compile == "whole" else "compiled by blocks")
    elif train.compile == "auto":
        why = not_compiled(run) or ("" if cuda else "a CPU, where it gains little")
        found.append(f"not compiled ({why})" if why else "compiled by blocks where torch can")
    if train.checkpointing:
        found.append("blocks worked out again in the backward pass")
    if train.fused is True or (train.fused == "auto" and cuda and fusable(run)):
        found.append("fused optimizer")
    return ", ".join(found)


def fusable(run: Run) -> bool:
    """Whether torch has the optimizer in one kernel, where it runs."""
    return run.optimizer.kind in FUSED and run.losses.balance.kind != "adatask" and run.parallel.offload == "none"
