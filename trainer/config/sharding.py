"""What cannot be trained when the ranks share a network out (`parallel.kind` other than ddp), and why."""

from __future__ import annotations

from typing import TYPE_CHECKING

from trainer.config.optimizers import Timm, Torch
from trainer.config.parallel import CUTS_WEIGHTS

if TYPE_CHECKING:
    from trainer.config.run import Run

# Optimizers that treat each number by itself, so that it does not matter how the ranks cut what they hold (a test looks at each).
# DeepSpeed makes Adagrad anew with one group.
_BY_NUMBER = {
    "torch": ("ASGD", "Adadelta", "Adam", "AdamW", "Adamax", "NAdam", "RAdam", "RMSprop", "Rprop", "SGD"),
    "timm": (
        "adadelta", "adam", "adamax", "adamc", "adamw", "adamwlegacy", "adan", "adanw", "adopt", "adoptc", "adoptw", "lion",
        "lionc", "momentum", "nadam", "nadamc", "nadamw", "nesterov", "nesterovw", "radam", "radamw", "rmsprop", "rmsproptf",
        "rmsproptfc", "rmsproptfw", "sgd", "sgdc", "sgdw",
    ),
}  # fmt: skip


def refused(run: Run) -> str | None:
    """What to write instead; none where the run can be shared out."""
    kind, optimizer = run.parallel.kind, run.optimizer
    if kind == "ddp":
        return None
    where = f"parallel.kind: {kind}"
    if run.task.translates or run.task.reconstructs or run.task.duels:
        return f"{where} has not been tried with task {run.task.kind}, which may train two networks; write parallel.kind: ddp"
    if run.train.precision == "fp16":
        return f"{where} does not go with train.precision: fp16, whose scale has not been shared out; write bf16"
    if isinstance(optimizer, Timm | Torch):
        looks = "keeps its state in blocks" if optimizer.name.startswith("bnb") else "looks at whole layers"
        if optimizer.args.get("caution"):
            return f"{where} cuts what the optimizer holds, and args.caution {looks}; leave it out, or write parallel.kind: ddp"
        if optimizer.name not in _BY_NUMBER[optimizer.kind]:
            return (
                f"{where} cuts what the optimizer holds, and {optimizer.kind}'s {optimizer.name} {looks}; choose one that treats "
                f"each number by itself: sgd, adam, adamw, or of {optimizer.kind} {', '.join(_BY_NUMBER[optimizer.kind])}"
            )
    if optimizer.kind in ("schedule_free", "prodigy"):
        what = "keeps its own average" if optimizer.kind == "schedule_free" else "looks at all parameters at once"
        return f"{where} cuts what the optimizer holds, and {optimizer.kind} {what}; write adamw, or parallel.kind: ddp"
    if run.losses.balance.own_gradients:
        return (
            f"{where}: losses.balance {run.losses.balance.kind} takes gradients of its own, beside those that are shared out; "
            "write uncertainty or dwa, or parallel.kind: ddp"
        )
    near = [name for name, loss in run.losses.add.items() if loss.kind == "l2_sp"]
    if near and kind in CUTS_WEIGHTS:
        return f"{where}: losses.add.{near[0]} looks at the weights, which no rank holds whole; write zero2, or leave it out"
    return None
