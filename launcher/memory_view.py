"""Memory as `graft plan` shows it. Imports rich, so imported where something is shown."""

from __future__ import annotations

from typing import Any

from rich import box
from rich.console import Console
from rich.table import Table

from launcher.scale import FORMULAS, Outlook
from launcher.tree_view import size

_WIDTH = 32
_NAMES = {
    "weights": "weights", "buffers": "buffers", "gradients": "gradients", "optimizer": "optimizer", "average": "average",
    "other": "teacher, codec, data", "work": "activations, work",
}  # fmt: skip


def memory(found: dict[str, Any]) -> None:
    """Print what a rank needs by parts, and what that is on cards."""
    out = Console(highlight=False)
    if not found["foretold"]:
        print(f"memory: not foretold, since the network cannot be followed without values ({found['why']})")
        return
    footprint, world = found["footprint"], found["world"]
    parts: dict[str, int] = dict(footprint["at_peak"])
    if world > 1:
        parts["gradients"] = footprint["gradients"]  # they stand in buckets all the time
    where = "GPU" if found["gpu"] else "process"
    stage = f", once all learns that will (after {footprint['stage']:,} samples)" if footprint["stage"] else ""
    passes = f", {found['accumulation']} passes a step" if found["accumulation"] > 1 else ""
    print(
        f"memory foretold for each {where}: {size(found['rank'])} at most, with micro-batches of "
        f"{footprint['micro_batch']}{passes}{stage}"
    )
    table = Table(box=box.SIMPLE, show_header=False, pad_edge=False)
    table.add_column(no_wrap=True)
    table.add_column(justify="right", no_wrap=True)
    table.add_column(no_wrap=True)
    top = max(parts.values(), default=1)
    for part, count in parts.items():
        if count:
            table.add_row(_NAMES.get(part, part), size(count), "█" * max(1, round(_WIDTH * count / top)))
    out.print(table)
    if footprint["evaluation"] > footprint["peak"]:
        print(f"an evaluation takes more than a step: {size(footprint['evaluation'])}; lower evaluate.batch")
    if footprint["lacks"]:
        print(f"not in it, so that nothing is sure to fit: {footprint['lacks']}")
    if found["depends"]:
        print(
            "BatchNorm's statistics are those of a micro-batch, so that its size is part of what is learnt: with "
            "train.micro_batch: auto another GPU may give other losses"
        )
    for proposal in found["proposed"]:
        _proposed(proposal, found)
    if not found["gpu"]:
        print("a process on a CPU takes more: libraries, the copy that a checkpoint is written from, holes of malloc")
        return
    _cards(out, found)


def _cards(out: Console, found: dict[str, Any]) -> None:
    table = Table("card", "GiB", "needs", "", box=box.SIMPLE, pad_edge=False)
    for fit in found["cards"]:
        table.add_row(fit["card"], f"{fit['gib']:g}", f"{size(fit['low'])} to {size(fit['high'])}", fit["answer"])
    out.print(table)
    print(
        "allowed for on top of tensors, not foretold: CUDA's context 0.3 to 1 GiB, workspaces up to 1 GiB, "
        + ("NCCL up to 1 GiB, " if found["world"] > 1 else "")
        + "fragments -5 to +10% (`fits` with all of it, `does not fit` with the least); not measured on a GPU"
    )


def _proposed(proposal: dict[str, Any], found: dict[str, Any]) -> None:
    name = proposal["card"]
    if proposal["micro_batch"] is not None:
        now = proposal["micro_batch"] == found["footprint"]["micro_batch"]
        how = "as it is" if now else f"train.micro_batch={proposal['micro_batch']}"
        print(
            f"on {name}: {how} ({proposal['accumulation']} pass{'es' if proposal['accumulation'] > 1 else ''} a step, the global "
            f"batch kept) needs at most {size(proposal['fit']['high'])}, allowances included"
        )
        return
    shared = ", ".join(f"{kind} on {ranks}" for kind, ranks in proposal["shared"].items())
    none = "; sharing it out over more GPUs, where this run can be, is not sure to do it"
    more = f"; by arithmetic, shared out over GPUs: {shared}" if shared else none
    print(f"on {name}: nothing is sure to fit, one sample: {proposal['fit']['answer']}{more}")


def outlook(found: list[Outlook], save: float, restart: float, every: str) -> None:
    """Print what failures cost, and from what that follows."""
    table = Table(
        "failures of a node", "of the job", "save every", "(Young)", "trains", f"with {every}", box=box.SIMPLE, pad_edge=False
    )
    for one in found:
        table.add_row(
            f"{one.rate}: every {one.node_hours:,.0f} h", f"{one.job_hours:.3g} h", _minutes(one.interval), _minutes(one.young),
            f"{one.ratio:.2%}", "not known" if one.own is None else f"{one.own:.2%}",
        )  # fmt: skip
    Console(highlight=False).print(table)
    print(f"d = {save:g} s of a save (--save), R = {restart:g} s from a failure to the next step (--restart)")
    for formula in FORMULAS:
        print(f"  {formula}")


def _minutes(seconds: float) -> str:
    return f"{seconds / 60:.3g} min"
