"""A sweep on this machine: its members one after the other."""

from __future__ import annotations

import contextlib
import io
import json
import signal
import sys
import time
from types import FrameType

from launcher import snapshot, start
from launcher.local import EXIT_INTERRUPTED
from launcher.machine import here
from launcher.snapshot import Code
from launcher.sweep.check import Check
from launcher.sweep.folders import alone, standing, write_members, write_sweep
from launcher.sweep.members import Member, Sweep, shown
from trainer.config import EXIT_DONE, EXIT_FAULT, EXIT_REQUEUE, GraftError
from trainer.rundir.matrix import matrix

_STOPS = (EXIT_REQUEUE, EXIT_INTERRUPTED)


def train(sweep: Sweep, *, as_json: bool) -> int:
    """Train what is not finished; returns 0, 1 when a member failed, or 75 or 130 when somebody stopped it.

    A member that fails does not keep the others from their turn.
    """
    out = sys.stderr if as_json else sys.stdout
    code = EXIT_DONE
    with alone(sweep):
        to_do = standing(sweep, kept(sweep)).new
        check, machine = Check(), here()
        for member in to_do:
            check.plan(member, member.run, machine)
        write_sweep(sweep)
        number = {member.name: index for index, member in enumerate(sweep.members, 1)}
        before = len(sweep.members) - len(to_do)
        print(
            f"{sweep.name}: {len(sweep.members)} members" + (f", {before} done already" if before else ""), file=out, flush=True
        )
        failed: list[tuple[Member, str]] = []
        earlier = signal.signal(signal.SIGTERM, _stopped)  # between two members; while one trains it is told
        try:
            for member in to_do:
                print(f"\nmember {number[member.name]} of {len(sweep.members)}: {shown(member.shown)}", file=out, flush=True)
                began = time.monotonic()
                why, ended = _one(member, as_json=as_json)
                if ended in _STOPS:
                    code = ended
                    break
                if ended != EXIT_DONE:
                    failed.append((member, why))
                    code = EXIT_FAULT
                    print(
                        f"graft: {member.name} failed after {time.monotonic() - began:.0f} s; the others go on", file=sys.stderr
                    )
        finally:
            signal.signal(signal.SIGTERM, earlier)
            metric, rows = sweep.folder.write_results()
    if as_json:
        value = {"sweep": sweep.name, "folder": str(sweep.folder.path), "best": metric, "code": code}
        print(json.dumps({**value, "members": [row.as_json() for row in rows]}, indent=2))
    else:
        from launcher.sweep import show

        found = matrix(metric, rows)
        if found is not None:
            show.matrix(sweep.name, found)
        else:
            show.results(sweep.name, metric, rows)
        print(f"the table: {sweep.folder.results}")
    for member, why in failed:
        print(f"graft: {member.name} ({shown(member.shown)}) failed: {why}", file=sys.stderr)
    if code in _STOPS:
        print(f"graft: {sweep.name} was stopped; the same command goes on", file=sys.stderr)
    return code


def states(sweep: Sweep) -> dict[str, str]:
    """Of each member that is done."""
    return {member.name: "done" for member in standing(sweep, kept(sweep)).done}


def kept(sweep: Sweep) -> Code | None:
    """The snapshot that an array of this sweep made."""
    folder = sweep.folder.path / "code"
    return snapshot.kept(folder) if (folder / "code.json").is_file() else None


def _one(member: Member, *, as_json: bool) -> tuple[str, int]:
    """Train a member; why it failed, and the exit code."""
    write_members([member])
    try:
        prepared = start.prepare(str(member.rundir.path), [], member.rundir.path.parent, None)
        with contextlib.redirect_stdout(io.StringIO()) if as_json else contextlib.nullcontext():
            code = start.train(prepared, as_json=as_json)
    except GraftError as error:
        print(f"graft: {error}", file=sys.stderr)
        return str(error), error.code
    marker = member.rundir.marker()
    return (marker.reason if marker is not None and marker.state == "FAILED" else f"exit code {code}"), code


def _stopped(number: int, frame: FrameType | None) -> None:
    sys.exit(EXIT_REQUEUE)
