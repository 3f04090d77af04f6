"""What a Slurm job asks about its run: `python -m launcher.job begin` before the ranks start, `… end` when they have ended.

Called by slurm/train.sbatch, which reads the lines that are printed. Torch-free, and nothing here talks to Slurm: the script
does, so that this works inside a container too.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import signal
import sys
import time
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from launcher.machine import here
from launcher.nodecheck import LEAST_DISK
from launcher.plan import processes
from launcher.runs import last_checkpoint
from launcher.start import locate
from trainer.config import EXIT_DONE, EXIT_FAULT, EXIT_REFUSED, EXIT_REQUEUE, EXIT_USER, GraftError, UserError
from trainer.config.run import Resources
from trainer.rundir import RunDir, read_points, slurm_start, write_atomically
from trainer.rundir.lease import read_holder, refused_by, superseded

NO_PROGRESS = 3  # crashes in a row without a new checkpoint
BAD_STARTS = 10  # starts in a row that a bad node ended


@dataclass(frozen=True)
class Verdict:
    """What becomes of the job: `requeue`, `done`, `stop` or `cancelled`; its exit code; nodes to avoid; why."""

    verdict: str
    code: int
    exclude: tuple[str, ...]
    reason: str


def main() -> int:
    """Answer one question; messages go to stderr."""
    question = sys.argv[1] if sys.argv[1:] else ""
    parser = argparse.ArgumentParser(prog=f"python -m launcher.job {question or 'begin|end'}")
    if question == "end":
        parser.add_argument("folder", type=Path)
        parser.add_argument("--status", type=int, required=True, help="exit status of srun")
        parser.add_argument("--state", required=True, help="state of the job, as squeue prints it")
        parser.add_argument("--limit", type=int, required=True, help="how often the job may be queued again")
    else:
        parser.add_argument("run")
        parser.add_argument("overrides", nargs="*", metavar="key=value")
        parser.add_argument("--runs", type=Path, default=Path("runs"))
        parser.add_argument("--accept-changes", action="store_true")
        parser.add_argument("--retry", action="store_true")
    arguments = parser.parse_intermixed_args(sys.argv[2:])
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    try:
        if question == "begin":
            lines = begin(arguments.run, arguments.overrides, arguments.runs, accept_changes=arguments.accept_changes)
        elif question == "end":
            found = end(RunDir(arguments.folder), status=arguments.status, state=arguments.state, limit=arguments.limit)
            lines = [found.verdict, str(found.code), ",".join(found.exclude), found.reason]
        else:
            raise UserError("write `python -m launcher.job begin RUN` or `… end FOLDER`")
    except GraftError as error:
        print(f"graft: {error}", file=sys.stderr)
        return error.code
    except OSError as error:
        print(f"graft: {error.filename or 'the run folder'}: {error.strerror}", file=sys.stderr)
        return EXIT_FAULT
    print("\n".join(" ".join(line.splitlines()) for line in lines))
    return 0


def begin(target: str, overrides: list[str], runs: Path, *, accept_changes: bool) -> list[str]:
    """Take the run folder for this job; returns it, ranks a node (0: the run is done already), threads a rank, GPUs a node.

    Raises GraftError when the run cannot start; that is not tried again.
    """
    run, rundir = locate(target, overrides, runs)
    if not str(rundir.path).isprintable():
        raise UserError(
            f"{str(rundir.path)!r}: the name of a run folder is printable text on one line; choose another with --runs"
        )
    job, restart = facts()
    marker = rundir.marker()
    if marker is not None and marker.state == "DONE" and not rundir.difference(run):
        print(f"graft: {run.name} is done already", file=sys.stderr)
        return [str(rundir.path), "0", "0", "0"]
    earlier = read_holder(rundir.lease)
    if earlier is not None and superseded(earlier) and _ended(rundir, job, earlier.restart):
        rundir.lease.unlink(missing_ok=True)  # its srun has returned: nobody is left who could write
    holder = refused_by(rundir.lease)
    if holder is not None:
        raise GraftError(f"the run folder {rundir.path} is in use by {holder}; wait for it or stop it first")
    rundir.prepare(run, accept_changes=accept_changes)
    free = shutil.disk_usage(rundir.path).free
    if free < LEAST_DISK:  # asked here: the check of the nodes would blame, and leave out, one node after the other
        raise GraftError(f"the file system of {rundir.path} is full: {free >> 20} MiB are free; make room, then graft resume")
    rundir.clear_markers()
    for old in rundir.logs.glob("failure-*.json"):
        old.unlink(missing_ok=True)
    nodes = _nodes()
    before = rundir.read_json(rundir.job)
    now = {**before, "id": job, "restart": restart, "nodes": nodes, "started": round(time.time(), 3)}
    if script := os.environ.get("GRAFT_SCRIPT"):
        now["script"] = script  # a member of a sweep: with it `graft resume` hands it in alone
    now.setdefault("submitted", now["started"])
    write_atomically(rundir.job, json.dumps(now) + "\n")
    step = last_checkpoint(rundir) or 0
    _note(rundir, {"event": "begin", "job": job, "restart": restart, "nodes": nodes, "step": step})
    # what Slurm granted must be there: without this a node whose driver is gone would train on its CPU
    granted = os.environ.get("SLURM_GPUS_ON_NODE", "")
    machine = replace(here(), gpus=int(granted)) if granted.isdigit() else here()
    device, local = processes(run.model_copy(update={"resources": Resources()}), machine)
    threads = run.parallel.threads or max(1, machine.cores // local)
    return [str(rundir.path), str(local), str(threads), str(local if device == "cuda" else 0)]


def end(rundir: RunDir, *, status: int, state: str, limit: int) -> Verdict:
    """Judge how the ranks ended, by the run folder alone, and note it there."""
    job, restart = facts()
    step = last_checkpoint(rundir) or 0
    events = [e for e in read_points(rundir.jobs) if e.get("job") == job]  # what an older job met may be mended
    bad = [e for e in read_points(rundir.bad_nodes) if e.get("job") == os.environ.get("SLURM_JOB_ID")]
    found = judge(rundir, status=status, state=state, limit=limit, step=step, restart=restart, events=events, bad=bad)
    crash = None if any(e.get("restart") == restart for e in bad) else _crashed(rundir)  # none: it did not come to that
    try:
        _note(rundir, {"event": "end", "job": job, "restart": restart, "verdict": found.verdict, "reason": found.reason,
                       "step": step, "crash": crash, "exclude": list(found.exclude)})  # fmt: skip
    except OSError as error:  # the decision stands nevertheless
        print(f"graft: {rundir.jobs}: {error.strerror}; how this job ended is not noted there", file=sys.stderr)
    return found


def judge(
    rundir: RunDir, *, status: int, state: str, limit: int, step: int, restart: int, events: list[dict[str, Any]],
    bad: list[dict[str, Any]],
) -> Verdict:  # fmt: skip
    """The decision alone. `events` are those of jobs.jsonl so far, `bad` the nodes that failed a check in this job."""
    marker = rundir.marker()
    # nodes that failed in an earlier start are in Slurm's list already; setting it replaces it, so all are named
    exclude = tuple(sorted({str(e["node"]) for e in bad if "node" in e}))
    now_bad = [e for e in bad if e.get("restart") == restart]
    if marker is not None and marker.state == "DONE":
        return Verdict("done", EXIT_DONE, (), f"{rundir.name} is done: {marker.reason}")
    why, code = _why(rundir, status, restart, now_bad)
    if state not in ("RUNNING", "TIMEOUT"):  # at its time limit Slurm would not queue it again
        # cancelled, or ended by Slurm itself, which then also decides whether it is queued again
        return Verdict("cancelled", EXIT_REQUEUE, (), f"Slurm ends this job ({state.lower()}) and decides what follows; {why}")
    if marker is not None and marker.state == "FAILED" and marker.code in (EXIT_USER, EXIT_REFUSED):
        return Verdict("stop", marker.code, (), f"not queued again, since another start would end alike: {why}")
    if code in (EXIT_USER, EXIT_REFUSED):
        return Verdict("stop", code, (), f"not queued again, since another start would end alike: {why}")
    if restart >= limit:
        return Verdict("stop", code, (), f"not queued again: that was done {restart} times, which is the limit; {why}")
    if _crashed(rundir) and not now_bad:
        crashes = 1 + _crashes_at(step, events)
        if crashes >= NO_PROGRESS:
            return Verdict(
                "stop", code, (), f"not queued again: {crashes} crashes in a row without a checkpoint after step {step}; {why}"
            )
    starts = 1 + _bad_starts_at(step, events)
    if now_bad and starts >= BAD_STARTS:
        return Verdict(
            "stop", code, exclude, f"not queued again: {starts} starts in a row met a bad node, is it the nodes? {why}"
        )
    avoid = f", without {', '.join(exclude)}" if exclude else ""
    return Verdict("requeue", code, exclude, f"{why}; queued again{avoid}, goes on from step {step}")


def facts() -> tuple[str, int]:
    """This job's id, as squeue prints it (`12`, `12_3`), and how often it was queued again."""
    array, task = os.environ.get("SLURM_ARRAY_JOB_ID"), os.environ.get("SLURM_ARRAY_TASK_ID")
    job, restart = slurm_start()
    return f"{array}_{task}" if array and task else job, restart


def _ended(rundir: RunDir, job: str, restart: int) -> bool:
    """Whether the job script saw the end of that start of the job."""
    ends = (e for e in read_points(rundir.jobs) if e.get("event") == "end")
    return any(e.get("job") == job and e.get("restart") == restart for e in ends)


def _nodes() -> list[str]:
    """The names of this job's nodes."""
    return [name for name in os.environ.get("GRAFT_NODES", "").split(",") if name]


def _note(rundir: RunDir, event: dict[str, Any]) -> None:
    with rundir.jobs.open("ab+") as file:
        if file.tell() and os.pread(file.fileno(), 1, file.tell() - 1) != b"\n":
            file.write(b"\n")  # a line that a full disk tore must not take this one with it
        file.write((json.dumps({"time": round(time.time(), 3), **event}) + "\n").encode())


def _crashed(rundir: RunDir) -> bool:
    """Whether the ranks ended without a wish of anybody's."""
    marker = rundir.marker()
    return marker is None or marker.state == "FAILED"


def _crashes_at(step: int, events: list[dict[str, Any]]) -> int:
    """How many of the latest ends in a row were crashes with this newest checkpoint."""
    count = 0
    for event in reversed([e for e in events if e.get("event") == "end"]):
        if event.get("step") != step or event.get("verdict") != "requeue" or event.get("crash") is False:
            break
        count += event.get("crash") is True  # none: a node failed its check, which says nothing of the run
    return count


def _bad_starts_at(step: int, events: list[dict[str, Any]]) -> int:
    """How many of the latest ends in a row were for a bad node, with this newest checkpoint."""
    ends = [e for e in events if e.get("event") == "end"]
    count = 0
    while count < len(ends) and ends[-1 - count].get("crash", False) is None and ends[-1 - count].get("step") == step:
        count += 1
    return count


def _why(rundir: RunDir, status: int, restart: int, bad: list[dict[str, Any]]) -> tuple[str, int]:
    """In one sentence how the ranks ended, and the exit code that says so."""
    if bad:
        return "; ".join(f"{e.get('node')}: {e.get('problem')}" for e in bad), EXIT_FAULT
    marker = rundir.marker()
    if marker is not None:
        return marker.reason, marker.code or EXIT_FAULT
    for file in sorted(rundir.logs.glob("failure-*.json")):
        failed = rundir.read_json(file)
        if failed.get("restart", restart) != restart:
            continue  # of a start that outlived its slurmd and lost the folder to this one
        code = failed.get("code")
        if isinstance(code, int) and code:
            how = f"was killed by {signal.Signals(-code).name}" if code < 0 else f"ended with exit code {code}"
            return f"rank {failed.get('rank')} on {failed.get('node')} {how}", EXIT_FAULT if code < 0 else code
    if status > 128:
        return f"a process of the job was killed (srun ended with {status})", EXIT_FAULT
    return f"the ranks left no result (srun ended with {status})", status or EXIT_FAULT


if __name__ == "__main__":
    sys.exit(main())
