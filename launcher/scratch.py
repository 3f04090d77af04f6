"""`graft train RUN --scratch`: the run, then the same network without its weights, and one page that compares them."""

from __future__ import annotations

import subprocess
from pathlib import Path

from launcher import start
from launcher.python import environment, trainer_command
from trainer.config import EXIT_DONE, UserError
from trainer.rundir import RunDir

SUFFIX = "-scratch"
# what differs: no weights, and all of the network learns; the budget, the data and the rates are the run's
_CHANGES = ["model.weights=none", "model.adapt.head=auto", "strategy={kind: full}", "evaluate.source=null"]


def compare(
    target: str, overrides: list[str], runs: Path, processes: int | None, *, accept_changes: bool, retry: bool
) -> int:  # fmt: skip
    """Train both, each of which goes on where it stopped, and write the report; returns the exit code of the first that fails.

    Both are checked before either starts. Raises GraftError.
    """
    grafted = start.prepare(target, overrides, runs, processes)
    if grafted.run.model.weights == "none":
        raise UserError("--scratch compares with the network without its weights, and model.weights is none already")
    file = target if Path(target).is_file() else str(grafted.rundir.config)
    changes = [*overrides, *_CHANGES, f"name={grafted.run.name}{SUFFIX}"]
    scratch = start.prepare(file, changes, grafted.rundir.path.parent, processes)
    for prepared in (grafted, scratch):
        code = start.train(prepared, accept_changes=accept_changes, retry=retry)
        if code != EXIT_DONE:
            return code
    metric = grafted.run.checkpoint.best
    for prepared in (grafted, scratch):
        print(f"{prepared.run.name}: best {metric} {_best(prepared.rundir)}", flush=True)
    page = grafted.rundir.path / "scratch.html"
    words = trainer_command("report", str(grafted.rundir.path), str(scratch.rundir.path), "--out", str(page))
    return subprocess.run(words, env=environment(), check=False).returncode


def _best(folder: RunDir) -> str:
    value = (folder.read_json(folder.summary).get("best") or {}).get("value")
    return f"{value:.4f}" if isinstance(value, int | float) else "not measured"
