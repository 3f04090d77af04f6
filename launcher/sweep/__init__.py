"""`graft sweep`: one run with many settings, each a run of its own; as one Slurm array, or one after the other here."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

from launcher import slurm
from launcher.sweep.members import Member, Sweep, load_sweep
from trainer.config import EXIT_DONE, GraftError, UserError

__all__ = ["sweep"]


def sweep(file: Path, overrides: list[str], runs: Path, *, local: bool, dry: bool, as_json: bool) -> int:
    """Train what is not finished of a sweep; returns the exit code. Nothing is written before all members are checked.

    Overrides are settings of the run file, for all members; `sweep.key=value` is one of the sweep file. Raises GraftError.
    """
    planned = load_sweep(file, overrides, runs)
    if not str(planned.folder.path).isprintable():
        raise UserError(
            f"{str(planned.folder.path)!r}: the name of a folder of runs is printable text; choose another with --runs"
        )
    if local:
        return _local(planned, dry=dry, as_json=as_json)
    return _array(planned, dry=dry, as_json=as_json)


def _local(planned: Sweep, *, dry: bool, as_json: bool) -> int:
    from launcher.sweep import local, show

    if not dry:
        return local.train(planned, as_json=as_json)
    states = local.states(planned)
    if as_json:
        _print(planned, states)
    else:
        show.members(planned, states)
    return EXIT_DONE


def _array(planned: Sweep, *, dry: bool, as_json: bool) -> int:
    from launcher.sweep import array, show
    from launcher.sweep.folders import alone, standing

    if dry:
        try:
            busy = _queued(planned) if slurm.available() else {}
        except GraftError as error:
            print(f"graft: what is queued is not known: {error}", file=sys.stderr)
            busy = {}
        code, fresh = array.snapshot_of(planned, busy)
        found = standing(planned, code)
        asked = array.ask(planned, code, fresh=fresh)
        to_do = [member for member in found.new if member.name not in busy]
        states = _states(found.done, busy)
        text = asked.scripts(array.next_number(planned.folder), len(to_do)) if to_do else ("", "")
        if as_json:
            _print(planned, states, script=text[0], body=text[1])
        else:
            show.members(planned, states)
            show.scripts(*text)
        return EXIT_DONE
    if not slurm.available():
        raise UserError("sbatch is not on this machine: `graft sweep` works on a login node; here, --local trains the members")
    with alone(planned):
        busy = _queued(planned)
        code, fresh = array.snapshot_of(planned, busy)
        found = standing(planned, code)
        held = array.held_here([member for member in found.new if member.name not in busy])
        to_do = [member for member in found.new if member.name not in busy and member.name not in held]
        for member in found.new:
            if member.name in busy:
                array.note(member, busy[member.name])  # this command was killed before it could
        job, taken, told = None, list[Member](), list[str]()
        if to_do:
            asked = array.ask(planned, code, fresh=fresh)
            job, taken = array.submit(asked, to_do)
            told = asked.told()
        else:
            from launcher.sweep.folders import write_sweep

            write_sweep(planned)
    states = _states(found.done, {**busy, **held, **{member.name: f"{job}_{i}" for i, member in enumerate(taken)}})
    if as_json:
        _print(planned, states, job=job, submitted=len(taken), code=told)
    else:
        show.submitted(
            planned, job, len(taken), told, done=len(found.done), busy=len(busy), held=held, left=len(to_do) - len(taken)
        )
    return EXIT_DONE


def _queued(planned: Sweep) -> dict[str, str]:
    """The job of each member that waits or runs, by name."""
    from launcher.sweep import array

    found = array.queued(planned.folder, [member.rundir for member in planned.members])
    return {name: job for name, (job, _) in found.items()}


def _states(done: list[Member], jobs: dict[str, str]) -> dict[str, str]:
    """A word for each member that is not new."""
    return {**{name: f"job {job}" for name, job in jobs.items()}, **{member.name: "done" for member in done}}


def _print(planned: Sweep, states: dict[str, str], **more: Any) -> None:
    members = [
        {"name": m.name, "settings": m.settings, **({"labels": m.labels} if m.labels else {}), "state": states.get(m.name, "new")}
        for m in planned.members
    ]
    value = {"sweep": planned.name, "folder": str(planned.folder.path), "best": planned.best, **more, "members": members}
    print(json.dumps(value, indent=2))
