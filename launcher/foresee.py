"""What `graft plan` works out: the plan, what learns, the memory of each GPU, the time, and what failures cost on many GPUs."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from launcher import start
from launcher.machine import Machine, here
from launcher.pace import Pace, Probe, foretold, past
from launcher.plan import Plan
from launcher.scale import Outlook, nodes_of, outlooks
from trainer.config import Run, UserError
from trainer.config.footprint import card

_EACH = 8  # GPUs of a node, where nothing says so
_SAVE, _RESTART = 10.0, 300.0  # seconds


@dataclass(frozen=True)
class Failures:
    """Hours between failures of a node (none: published rates); seconds of a save, and from a failure to the next step (none:
    usual ones).
    """

    mtbf: float | None = None
    save: float | None = None
    restart: float | None = None

    @property
    def saved(self) -> float:
        return _SAVE if self.save is None else self.save

    @property
    def restarted(self) -> float:
        return _RESTART if self.restart is None else self.restart

    @property
    def said(self) -> list[str]:
        """The options that were given."""
        given = {"--mtbf": self.mtbf, "--save": self.save, "--restart": self.restart}
        return [name for name, value in given.items() if value is not None]

    def only_with_gpus(self) -> None:
        """Raises UserError where something is said of failures, which no plan without --gpus is about."""
        if self.said:
            raise UserError(f"{self.said[0]} is about many GPUs; add --gpus N, or leave it out")


@dataclass(frozen=True)
class Foreseen:
    """All of it; `learning` is what the trainer said (none where it was not asked), `outlook` is for many GPUs.

    `pace` is none where nothing is known of the speed; `probe` is what was measured here, where that was asked for.
    """

    prepared: start.Prepared
    learning: dict[str, Any] | None
    outlook: list[Outlook] | None
    failures: Failures
    pace: Pace | None = None
    probe: Probe | None = None

    def as_json(self) -> dict[str, Any]:
        """One object."""
        prepared = self.prepared
        told = {**prepared.plan.as_json(), "folder": str(prepared.rundir.path), "happens": prepared.happens}
        told["time"] = None if self.pace is None else self.pace.as_json()
        if self.probe is not None:
            told["probe"] = self.probe.as_json()
        if self.learning is not None:
            told["learning"] = self.learning
        if self.outlook is not None:
            told["failures"] = [one.as_json() for one in self.outlook]
        return told

    def show(self) -> None:
        """Print it."""
        from launcher import memory_view, show, tree_view

        show.plan(self.prepared.plan, self.prepared.happens, self._time())
        if self.learning is not None:
            tree_view.show(self.learning, self.prepared.run.optimizer.lr)
            memory_view.memory(self.learning["memory"])
        if self.outlook is not None:
            every = self.prepared.run.checkpoint.every.text
            memory_view.outlook(self.outlook, self.failures.saved, self.failures.restarted, every)

    def _time(self) -> list[tuple[str, str]]:
        """Rows: label and text."""
        run, planned = self.prepared.run, self.prepared.plan
        if self.pace is not None:
            rows = [("time", self.pace.text(run.resources.time))]
        elif self.prepared.done:
            rows = []
        else:
            rows = [("time", "not known: no run like this one is there; `graft plan RUN --probe` measures it here")]
        return rows + ([] if self.probe is None else self.probe.rows(planned.world_size // planned.nodes))


def foresee(
    target: str, overrides: list[str], runs: Path, processes: int | None, *, memory: bool, cards: Sequence[str],
    gpus: int | None, failures: Failures, probe: bool = False,
) -> Foreseen:  # fmt: skip
    """Work it out; `memory`: build the network, without weights; `probe`: measure its speed here. Raises UserError."""
    cards = [card(name).name for name in cards]  # refuses what there is not before anything is built
    if cards and not memory:
        raise UserError("--card asks for memory, and --no-memory leaves it out; write one of them")
    if gpus is None:
        failures.only_with_gpus()
    elif probe:
        raise UserError("--probe measures this machine, and --gpus is about another; leave one of them out")
    asked = [*overrides, *([] if processes is None else [f"parallel.processes={processes}"])]
    run, rundir = start.locate(target, asked, runs)
    machine = here()
    if gpus is not None:
        more = on_gpus(run, gpus, processes)
        asked += more
        run, rundir = start.locate(target, asked, runs)
        machine = Machine(run.resources.gpus_per_node or gpus, machine.cores)
    prepared = start.checked(run, rundir, machine)
    learning = None
    file = Path(target) if Path(target).is_file() else rundir.config
    if memory:
        from launcher.tree_view import learnt_tree

        known = cards or [name for name in [_card_of(run)] if name is not None]
        learning = learnt_tree(file, asked, prepared.plan.world_size, known)
    outlook = None
    if gpus is not None:
        every = run.checkpoint.every
        seconds = every.value if every.unit == "second" else None
        each = run.resources.gpus_per_node or gpus
        outlook = outlooks(
            run.resources.nodes, each, mtbf=failures.mtbf, save=failures.saved, restart=failures.restarted, every=seconds
        )  # fmt: skip
    measured = probed(file, asked, prepared.plan) if probe else None
    pace = past(run, prepared.plan, rundir, runs) if measured is None else of_probe(run, prepared, measured)
    return Foreseen(prepared, learning, outlook, failures, pace, measured)


def script(
    target: str, overrides: list[str], runs: Path, processes: int | None, gpus: int | None, failures: Failures, asked: list[str]
) -> str:  # fmt: skip
    """The job script of the run. Raises UserError for options (`asked`) that it has no use for."""
    from launcher.submit import prepare, script_of

    useless = [*asked, *failures.said]
    if useless:
        raise UserError(f"--script prints the job script alone; leave {useless[0]} out, or --script")
    more = [] if processes is None else [f"parallel.processes={processes}"]
    if gpus is not None:
        more += on_gpus(start.locate(target, [*overrides, *more], runs)[0], gpus, processes)
    return script_of(prepare(target, [*overrides, *more], runs))


def probed(file: Path, asked: list[str], planned: Plan) -> Probe:
    """What the run's loader and steps are worth on this machine. Raises GraftError."""
    from launcher.tree_view import ask

    if planned.nodes > 1:
        raise UserError(f"--probe measures this machine, and the run is for {planned.nodes} nodes; add resources.nodes=1")
    found = ask("probe", str(file), *asked, f"--world={planned.world_size}")
    spreads = {key: tuple(map(float, found[key])) for key in ("loader", "step", "together")}
    return Probe(**{**found, **spreads})


def of_probe(run: Run, prepared: start.Prepared, measured: Probe) -> Pace | None:
    """The time of the run, if each of its ranks goes as the one that was measured."""
    world = prepared.plan.world_size
    low, rate, high = (world * figure for figure in measured.together)
    of = "as the probe went"
    if world > 1:
        of = f"{world} times what one rank did in the probe: what they wait for one another is not in it"
    return foretold(run, prepared.plan, prepared.rundir, rate, low, high, None, of)


def on_gpus(run: Run, gpus: int, processes: int | None) -> list[str]:
    """The settings that put a run on so many GPUs. Raises UserError."""
    if run.parallel.device == "cpu" or processes is not None:
        what = "--processes says how many ranks" if processes is not None else "parallel.device is cpu"
        raise UserError(f"--gpus is {gpus}, and {what}; leave one of them out")
    from launcher.cluster import load_cluster  # which takes a while; most plans do not need it

    nodes, each = nodes_of(gpus, run.resources.gpus_per_node or load_cluster(run.resources.cluster).gpus_per_node or _EACH)
    return [f"resources.nodes={nodes}", f"resources.gpus_per_node={each}", "parallel.processes=auto"]


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
