"""`graft runs --sweep NAME`: a sweep's table, the best first; results.csv is brought up to date."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

from launcher import slurm
from trainer.config import GraftError, UserError, nearest
from trainer.rundir import write_atomically
from trainer.rundir.matrix import matrix
from trainer.rundir.sweep import Row, SweepDir, as_csv


def find(sweep: str, runs: Path) -> SweepDir:
    """The folder of a sweep that is given by its path, or by its name below `runs`. Raises UserError."""
    for folder in (Path(sweep), runs / sweep):
        if SweepDir(folder).exists():
            return SweepDir(folder.resolve())
    names = [file.parent.name for file in runs.glob("*/sweep.yaml")]
    raise UserError(f"{sweep}: no sweep of that name in {runs}{nearest(sweep, names)}")


def results(folder: SweepDir) -> tuple[str, list[Row]]:
    """The metric that counts, and a row a member with what Slurm says of it, the best first; written to results.csv too."""
    metric, rows = folder.rows()
    if any(row.state not in ("done", "running") for row in rows) and slurm.available():
        rows = _with_slurm(folder, rows)
    write_atomically(folder.results, as_csv(metric, rows))
    return metric, rows


def _with_slurm(folder: SweepDir, rows: list[Row]) -> list[Row]:
    """The states of members that wait in the queue, which their folders cannot tell."""
    from launcher.sweep.array import queued

    try:
        jobs = queued(folder, [folder.member(row.name) for row in rows if row.state != "done"])
    except GraftError:  # the folders alone, then
        return rows
    found = []
    for row in rows:
        _, state = jobs.get(row.name, ("", ""))
        found.append(replace(row, state="running" if state == "RUNNING" else "queued") if state else row)
    return found


def show(name: str, runs: Path, *, as_json: bool) -> None:
    """Print the table of a sweep."""
    folder = find(name, runs)
    metric, rows = results(folder)
    if as_json:
        import json

        print(json.dumps({"sweep": folder.name, "best": metric, "members": [row.as_json() for row in rows]}, indent=2))
    else:
        from launcher.sweep import show as tables

        found = matrix(metric, rows)
        if found is not None:
            tables.matrix(folder.name, found)
        else:
            tables.results(folder.name, metric, rows)
        print(f"the table: {folder.results}")
