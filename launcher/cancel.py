"""Stops runs, so that each saves first, and goes on with runs that stopped."""

from __future__ import annotations

import contextlib
import gc
import json
import os
import signal
import socket
import sys
import time
from collections.abc import Sequence
from pathlib import Path

from launcher import slurm, start
from launcher.detail import address
from launcher.glance import events, ranks
from launcher.queue import Queue
from launcher.runs import Status, duration, find, last_checkpoint, statuses
from launcher.verdict import GOES_ON
from trainer.config import EXIT_DONE, EXIT_FAULT, EXIT_USER, GraftError
from trainer.rundir import RunDir
from trainer.rundir.lease import held_by, read_holder

_WAIT = 180.0  # seconds; Slurm itself kills what has not ended after KillWait, often 30 s
_LOOK, _QUEUE = 0.5, 2.0  # seconds between two looks at the folders, at the queue


def cancel(names: Sequence[str], runs: Path, *, wait: float = _WAIT) -> int:
    """Stop runs by name; returns 0 when all that ran have stopped, 2 when nothing could be stopped, 1 otherwise.

    Jobs end by scancel, which is final: what ran saves first, and is not queued again. Runs on this machine get SIGTERM.
    """
    rundirs = _find(names, runs)
    queue = Queue(_QUEUE)
    told: dict[Path, RunDir] = {}
    failed = False
    for rundir in rundirs:
        run = statuses([rundir], queue)[0]
        try:
            if _tell(rundir, run, queue):
                told[rundir.path] = rundir
        except GraftError as error:
            failed = True
            print(f"{run.name}: cannot be stopped: {error}", file=sys.stderr)
    if not told:
        return EXIT_FAULT if failed else EXIT_USER
    left = _await(told, queue, wait)
    for rundir in left:
        how = f"`graft status {address(rundir)}` says how it goes on"
        print(f"{rundir.name}: has not ended after {duration(wait)}; {how}", file=sys.stderr)
    return EXIT_FAULT if left or failed else EXIT_DONE


def _find(names: Sequence[str], runs: Path) -> list[RunDir]:
    """The run folders, each once; UserError before anything is done when one of the names is wrong."""
    return list({rundir.path: rundir for rundir in (find(name, runs) for name in names)}.values())


def _tell(rundir: RunDir, run: Status, queue: Queue) -> bool:
    """Ask a run to stop; false, and said why, when there is nothing to stop. Raises GraftError when Slurm does not take it."""
    job = queue.jobs.get(run.job or "")
    if job is not None and (job.waiting or job.active):
        slurm.command("scancel", job.id)
        if job.waiting:
            # of a member of an array that never started Slurm keeps nothing, so that the folder must say it
            note(rundir, job.id)
        where = f"on {job.nodes}" if job.nodes else "in the queue"
        print(f"{run.name}: cancelling job {job.id} ({where})" + ("; it saves first" if job.active else ""), flush=True)
        return True
    holder = read_holder(rundir.lease)
    past = events(rundir.jobs)
    if queue.problem and past and past[-1].get("event") == "begin":
        raise GraftError(f"it belongs to job {run.job}, which would be queued again, and {queue.problem}")
    if told := _signal(rundir):
        print(f"{run.name}: told {told} to save and stop", flush=True)
        return True
    if run.state == "running" and holder is not None:
        print(f"{run.name}: runs on {holder.host}, not here: there, graft cancel {address(rundir)} stops it", file=sys.stderr)
    elif queue.problem and run.state in GOES_ON:
        raise GraftError(queue.problem)
    else:
        print(f"{run.name}: is not running, it is {run.state}", file=sys.stderr)
    return False


def note(rundir: RunDir, job: str) -> None:
    """Note that a job was cancelled while it waited."""
    reason = f"job {job} was cancelled while it waited"
    event = {"time": round(time.time(), 3), "event": "end", "job": job, "verdict": "cancelled", "reason": reason}
    with rundir.jobs.open("a", encoding="utf-8") as file:
        file.write(json.dumps({**event, "step": last_checkpoint(rundir) or 0}) + "\n")


def _signal(rundir: RunDir) -> str:
    """SIGTERM to the ranks of a run that are on this machine; returns who got it.

    The folder names processes by number, host and time of start: a number that went to another process meanwhile is left alone.
    """
    holder = read_holder(rundir.lease)
    if holder is None or not _here(holder.host) or held_by(rundir.lease) is None:
        return ""
    ours = [facts for facts in ranks(rundir) if _here(facts.get("host"))]
    known = [(f"rank {facts['rank']}", facts.get("pid"), facts.get("started")) for facts in ours]
    if not any(pid == holder.pid for _, pid, _ in known):
        known.append(("the first process", holder.pid, holder.started))  # the ranks have not met yet
    told = [who for who, pid, started in known if _send(pid, started)]
    return ", ".join(told)


def _here(host: object) -> bool:
    return host == socket.gethostname()


def _send(pid: object, started: object) -> bool:
    import psutil

    if not isinstance(pid, int) or not isinstance(started, (int, float)):
        return False
    with contextlib.suppress(psutil.Error, OSError):
        process = psutil.Process(pid)
        if abs(process.create_time() - started) < 2 and process.status() != psutil.STATUS_ZOMBIE:
            os.kill(pid, signal.SIGTERM)
            return True
    return False


def _await(told: dict[Path, RunDir], queue: Queue, wait: float) -> list[RunDir]:
    """Wait until the runs have stopped and say what each came to; returns those that have not."""
    began, left = time.monotonic(), dict(told)
    progress = sys.stderr.isatty()
    while left and time.monotonic() - began < wait:
        time.sleep(_LOOK)
        for run in statuses(left.values(), queue):
            if run.state in GOES_ON or queue.problem:
                continue
            rundir = left.pop(Path(run.folder))
            step = last_checkpoint(rundir)
            goes_on = step is not None and run.state != "done"
            saved = f"; graft resume {address(rundir)} goes on from step {step:,}" if goes_on else ""
            _clear(progress)
            print(f"{run.name}: {run.state}{saved}", flush=True)
        if progress and left:
            names = ", ".join(rundir.name for rundir in left.values())[:60]
            print(f"\r\x1b[2Kwaiting for {names} ({duration(time.monotonic() - began)})", end="", file=sys.stderr, flush=True)
    _clear(progress)
    return list(left.values())


def _clear(progress: bool) -> None:
    if progress:
        print("\r\x1b[2K", end="", file=sys.stderr, flush=True)


def resume(names: Sequence[str], runs: Path) -> int:
    """Go on with runs by name; returns 0 when each goes on or is done, else the first other exit code.

    Those that were Slurm jobs become new jobs; the others train here, one after the other.
    """
    rundirs = _find(names, runs)
    queue, code = Queue(_QUEUE), EXIT_DONE
    for rundir in rundirs:
        run = statuses([rundir], queue)[0]
        try:
            code = code or _resume(rundir, run, runs)
        except GraftError as error:
            print(f"{run.name}: does not go on: {error}", file=sys.stderr)
            code = code or error.code
    return code


def _resume(rundir: RunDir, run: Status, runs: Path) -> int:
    if run.state == "done":
        print(f"{run.name}: is done already")
        return EXIT_DONE
    if run.state in GOES_ON:
        print(f"{run.name}: is {run.state} already: {run.reason}")
        return EXIT_DONE
    step = last_checkpoint(rundir)
    where = f"goes on from step {step:,}" if step is not None else "starts from the beginning"
    if run.job is not None:
        from launcher.submit import submit_folder

        job = submit_folder(rundir)
        print(f"{run.name}: {where} as job {job}", flush=True)
        return EXIT_DONE
    gc.enable()  # which the command line turned off to start quickly
    return start.train(start.prepare(str(rundir.path), [], runs, None))
