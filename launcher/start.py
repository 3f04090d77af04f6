"""What `graft plan` and `graft train` share: from what the user named to a checked run, its plan and its folder."""

from __future__ import annotations

import gc
import json
import sys
from dataclasses import dataclass
from pathlib import Path

from launcher.machine import Machine, here
from launcher.plan import Counts, Plan, plan
from launcher.runs import find, last_checkpoint, status
from trainer.config import EXIT_DONE, RefusedError, Run, UserError, load, nearest, resolved
from trainer.config.absolute import SAVED
from trainer.rundir import RunDir
from trainer.rundir.lease import refused_by

# the trainer, which takes the lease, watches a holder on another host for as long as it needs; here a look is enough
_PATIENCE = 4.0


@dataclass(frozen=True)
class Prepared:
    """A run that was checked as far as that goes without torch; nothing was written yet."""

    run: Run
    rundir: RunDir
    plan: Plan
    difference: list[str]
    done: bool
    happens: str


def prepare(target: str, overrides: list[str], runs: Path, processes: int | None) -> Prepared:
    """Load a run file (or the one of a run folder), list its data and work the plan out. Raises UserError."""
    if processes is not None:
        overrides = [*overrides, f"parallel.processes={processes}"]
    run, rundir = locate(target, overrides, runs)
    return checked(run, rundir, here())


def checked(run: Run, rundir: RunDir, machine: Machine, *, written: Run | None = None) -> Prepared:
    """List a run's data, work its plan out for a machine and compare it with what its folder holds. Raises UserError.

    `written` is what is to be written into the folder, where that differs from the run that is looked at (other paths).
    """
    look(run, rundir)
    worked_out = plan(run, counts(run), machine)
    kept = written or run
    difference = [] if rundir.untouched() else rundir.difference(kept)
    marker = rundir.marker()
    done = marker is not None and marker.state == "DONE" and not difference
    return Prepared(kept, rundir, worked_out, difference, done, _happens(rundir, difference, done))


def locate(target: str, overrides: list[str], runs: Path) -> tuple[Run, RunDir]:
    """The run that a run file or a run folder describes, and its folder, which need not exist yet. Raises UserError."""
    path = Path(target)
    if path.suffix in (".yaml", ".yml") or path.is_file():
        run = load(path, overrides)
        return run, RunDir((runs / run.name).resolve())
    if path.exists() or (runs / target).exists():
        rundir = find(target, runs)
        return resolved(rundir.config, overrides), rundir
    raise UserError(f"{target}: no such run file, and no run folder of that path or of that name in {runs}")


def train(prepared: Prepared, *, accept_changes: bool = False, retry: bool = False, as_json: bool = False) -> int:
    """Train a prepared run; returns the exit code. Raises RefusedError when the folder is in use or holds another run."""
    run, rundir, planned = prepared.run, prepared.rundir, prepared.plan
    if run.resources.nodes > 1:
        raise RefusedError(
            f"resources.nodes is {run.resources.nodes}, and `graft train` starts ranks on this machine only; on each node run\n"
            f"  accelerate launch --multi_gpu --num_machines {run.resources.nodes} --num_processes {planned.world_size} "
            "--machine_rank RANK --main_process_ip HOST --main_process_port 29500 -m trainer RUN\n"
            "or write resources.nodes=1 to train here, or give it to Slurm: graft submit"
        )
    holder = refused_by(rundir.lease, patience=_PATIENCE)
    if holder is not None:
        raise RefusedError(f"the run folder {rundir.path} is in use by {holder}; wait for it or stop it first")
    rundir.prepare(run, accept_changes=accept_changes)
    out = sys.stderr if as_json else sys.stdout
    if prepared.done:
        print(f"{run.name} is done already; its result is in {rundir.path}", file=out)
        code = EXIT_DONE
    else:
        if prepared.difference:
            rundir.clear_markers()  # what ended was the run with the old settings
        ranks = "1 process" if planned.world_size == 1 else f"{planned.world_size} ranks"
        work = f"{planned.steps:,} steps of {planned.global_batch} samples on {planned.device}, {ranks}"
        print(f"{run.name}: {work}; {prepared.happens}", file=out, flush=True)
        # imported here: signals, processes and threads are of no use to `graft plan`
        from launcher import local

        gc.enable()  # which the command line turned off to start quickly
        options = ["--accept-changes"] * accept_changes + ["--retry"] * retry
        code = local.train(rundir, options, world_size=planned.world_size, threads=planned.threads, quiet_stdout=as_json)
    if as_json:
        summary = rundir.read_json(rundir.summary)
        print(json.dumps({**status(rundir).as_json(), "code": code, "summary": summary}, indent=2))
    return code


def look(run: Run, rundir: RunDir) -> None:
    """Refuse files that are not there now, rather than after seconds of starting."""
    begun = last_checkpoint(rundir) is not None
    for key, model in run.models.items():
        scheme, _, rest = model.source.partition(":")
        named = [(f"{key}.source", Path(rest.rpartition(":")[0]))] if scheme == "python" else []
        if scheme in SAVED and rest.startswith("/") and not Path(rest.partition("#")[0]).is_dir():
            raise UserError(f"{key}.source: {rest.partition('#')[0]}: no such folder")
        if not begun or key != "model":  # later on the pretrained weights are not read again
            named.append((f"{key}.weights", Path(model.weights)))
        for place, path in named:
            if path.is_absolute() and not (path.is_file() or (place.endswith(".weights") and path.is_dir())):
                beside = [p.name for p in path.parent.iterdir() if p.suffix == path.suffix] if path.parent.is_dir() else []
                raise UserError(f"{place}: {path}: no such file{nearest(path.name, beside)}")


def counts(run: Run) -> Counts:
    from trainer.config import sampling
    from trainer.config.sources import open_splits

    splits = open_splits(run.data, run.train.seed, looks_at=run.task.looks_at)
    often = sampling.rates(splits.train, run.data)
    expected = () if often is None else zip(splits.train.classes, sampling.expected(splits.train, often), strict=True)
    return Counts(
        len(splits.train.items), None if splits.val is None else len(splits.val.items), splits.train.facts,
        None if often is None else dict(expected),
    )  # fmt: skip


def _happens(rundir: RunDir, difference: list[str], done: bool) -> str:
    """What starting this run would do."""
    if not rundir.exists():
        return f"starts anew in {rundir.path}"
    if done:
        return f"is done already, in {rundir.path}; would not train again"
    step = last_checkpoint(rundir)
    goes_on = f"goes on from step {step:,}" if step is not None else "starts from the beginning (no checkpoint yet)"
    if difference:
        return f"{goes_on} in {rundir.path}, only with --accept-changes:\n" + "\n".join(difference)
    return f"{goes_on} in {rundir.path}"
