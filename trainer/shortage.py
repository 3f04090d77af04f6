"""A lack of memory: how libraries say it, and what to do about it."""

from __future__ import annotations

import torch

from trainer.config import Run

# torch has a type for CUDA's allocator alone; so do they speak on a CPU, C++, and the libraries that allocate by themselves
_SAID = (
    "can't allocate memory", "std::bad_alloc", "CUDA error: out of memory", "CUBLAS_STATUS_ALLOC_FAILED",
    "CUDNN_STATUS_ALLOC_FAILED", "Cuda failure 2 'out of memory'",
)  # fmt: skip
EVALUATES = ("evaluate", "gather")  # stages of a step, as the heartbeat tells them
MAKES = "make"  # the stage of an evaluation in which a generator makes images


def short(error: BaseException) -> bool:
    """Whether an error says that memory ran out."""
    if isinstance(error, MemoryError | torch.OutOfMemoryError):
        return True
    return isinstance(error, RuntimeError) and any(said in str(error) for said in _SAID)


def told(error: BaseException) -> str:
    """The error in one line."""
    lines = str(error).strip().splitlines()
    return f"{type(error).__name__}: {lines[0].strip()}" if lines else type(error).__name__


def advice(error: BaseException, run: Run | None = None, stage: str = "") -> str | None:
    """What to do about a lack of memory in a stage of a run; none for another error."""
    if not short(error):
        return None
    gpu = isinstance(error, torch.OutOfMemoryError) or "CU" in str(error)
    what, fewer = ("GPU", "") if gpu else ("machine", "data.workers or ")
    plan = "; `graft plan RUN --card CARD` says what fits" if gpu else ""
    if run is not None and stage in EVALUATES and run.evaluate.batch is not None:
        now = run.evaluate.batch
        less = f"evaluate.batch={now // 2}, or leave it out" if now > 1 else "another card, or train.precision=bf16"
        return f"the {what} has too little memory for {now} samples at a time in an evaluation: write {less}"
    if run is not None and stage == MAKES:
        return f"the {what} has too little memory for the images that an evaluation makes: {fewer_made(run)}"
    size = run.train.micro_batch if run is not None else "auto"
    if size == "auto" or run is None:
        return f"the {what} has too little memory: lower {fewer}train.micro_batch{plan}"
    if size > 1:
        return (
            f"the {what} has too little memory for micro-batches of {size}: lower {fewer}train.micro_batch. Write "
            f"train.micro_batch=auto, which finds what fits, or train.micro_batch={size // 2}; "
            f"train.checkpointing=true keeps less of each{plan}"
        )
    return f"the {what} has too little memory for one sample at a time: {sparing(run)}{plan}"


def fewer_made(run: Run) -> str:
    """What would take less memory where images are made."""
    samples = getattr(run.task, "samples", None)
    now = 1 if samples is None else int(samples.batch)
    if now > 1:
        return f"{now} are made at a time; write task.samples.batch={now // 2}"
    return "one is made at a time; take another card" + (
        ", or write train.precision=bf16" if run.train.precision == "fp32" else ""
    )


def sparing(run: Run) -> str:
    """What would take less memory than this run does, with micro-batches of one sample."""
    ways = [
        "train.checkpointing=true" if not run.train.checkpointing else "",
        "train.precision=bf16" if run.train.precision == "fp32" else "",
        "strategy.kind=lora" if run.strategy.kind != "lora" else "",
        "parallel.kind=fsdp on more GPUs" if run.parallel.kind in ("ddp", "zero1", "zero2") else "more GPUs",
    ]
    return f"write {', or '.join(way for way in ways if way)}"
