"""What `graft plan` works out: the plan, what learns, the memory of each GPU, and what failures cost on many of them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from launcher import start
from launcher.machine import Machine, here
from launcher.scale import Outlook, nodes_of, outlooks
from trainer.config import Run, UserError
from trainer.config.footprint import card

_EACH = 8  # GPUs of a node, where nothing says so


@dataclass(frozen=True)
class Failures:
    """Hours between failures of a node (none: published rates); seconds of a save, and from a failure to the next step."""

    mtbf: float | None
    save: float
    restart: float


@dataclass(frozen=True)
class Foreseen:
    """All of it; `learning` is what the trainer said (none where it was not asked), `outlook` is for many GPUs."""

    prepared: start.Prepared
    learning: dict[str, Any] | None
    outlook: list[Outlook] | None
    failures: Failures

    def as_json(self) -> dict[str, Any]:
        """One object."""
        prepared = self.prepared
        told = {**prepared.plan.as_json(), "folder": str(prepared.rundir.path), "happens": prepared.happens}
        if self.learning is not None:
            told["learning"] = self.learning
        if self.outlook is not None:
            told["failures"] = [one.as_json() for one in self.outlook]
        return told

    def show(self) -> None:
        """Print it."""
        from launcher import memory_view, show, tree_view

        show.plan(self.prepared.plan, self.prepared.happens)
        if self.learning is not None:
            tree_view.show(self.learning, self.prepared.run.optimizer.lr)
            memory_view.memory(self.learning["memory"])
        if self.outlook is not None:
            every = self.prepared.run.checkpoint.every.text
            memory_view.outlook(self.outlook, self.failures.save, self.failures.restart, every)


def foresee(
    target: str, overrides: list[str], runs: Path, processes: int | None, *, memory: bool, cards: Sequence[str],
    gpus: int | None, failures: Failures,
) -> Foreseen:  # fmt: skip
    """Work it out; `memory`: build the network, without weights. Raises UserError."""
    cards = [card(name).name for name in cards]  # refuses what there is not before anything is built
    if cards and not memory:
        raise UserError("--card asks for memory, and --no-memory leaves it out; write one of them")
    asked = [*overrides, *([] if processes is None else [f"parallel.processes={processes}"])]
    run, rundir = start.locate(target, asked, runs)
    machine = here()
    if gpus is not None:
        run, machine, more = _on_gpus(run, machine, gpus, processes)
        asked += more
    prepared = start.checked(run, rundir, machine)
    learning = None
    if memory:
        from launcher.tree_view import learnt_tree

        file = Path(target) if Path(target).is_file() else rundir.config
        known = cards or [name for name in [_card_of(run)] if name is not None]
        learning = learnt_tree(file, asked, prepared.plan.world_size, known)
    outlook = None
    if gpus is not None:
        every = run.checkpoint.every
        seconds = every.value if every.unit == "second" else None
        outlook = outlooks(run.resources.nodes, mtbf=failures.mtbf, save=failures.save, restart=failures.restart, every=seconds)
    return Foreseen(prepared, learning, outlook, failures)


def _on_gpus(run: Run, machine: Machine, gpus: int, processes: int | None) -> tuple[Run, Machine, list[str]]:
    """The run on so many GPUs, and the settings that make it so. Raises UserError."""
    if run.parallel.device == "cpu" or processes is not None:
        what = "--processes says how many ranks" if processes is not None else "parallel.device is cpu"
        raise UserError(f"--gpus is {gpus}, and {what}; leave one of them out")
    from launcher.cluster import load_cluster  # which takes a while; most plans do not need it

    nodes, each = nodes_of(gpus, run.resources.gpus_per_node or load_cluster(run.resources.cluster).gpus_per_node or _EACH)
    resources = run.resources.model_copy(update={"nodes": nodes, "gpus_per_node": each})
    parallel = run.parallel.model_copy(update={"processes": "auto"})
    more = [f"resources.nodes={nodes}", f"resources.gpus_per_node={each}", "parallel.processes=auto"]
    return run.model_copy(update={"resources": resources, "parallel": parallel}), Machine(each, machine.cores), more


def _card_of(run: Run) -> str | None:
    """The card of the run's cluster, where its file names one that is known."""
    if run.parallel.device == "cpu":
        return None
    from launcher.cluster import load_cluster

    try:
        kind = load_cluster(run.resources.cluster).gpu_type
        return None if kind is None else card(kind).name
    except UserError:  # several clusters and none named, or a card that is not in the table: all cards are shown
        return None
