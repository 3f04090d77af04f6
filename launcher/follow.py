"""Prints the logs of a run, and goes on while they grow: over attempts and requeues, until the run has ended."""

from __future__ import annotations

import gc
import os
import sys
import time
from dataclasses import dataclass
from pathlib import Path

from launcher import slurm
from launcher.queue import Queue, expand
from launcher.runs import Status, status
from launcher.verdict import GOES_ON
from trainer.config import EXIT_DONE, EXIT_FAULT, EXIT_REQUEUE, GraftError, UserError
from trainer.rundir import RunDir

_LOOK, _STATE, _QUEUE = 0.5, 2.0, 10.0  # seconds between two looks at the files, at the state, at the queue
_CHUNK = 1 << 20


def show(rundir: RunDir, rank: int | None, *, job: bool = False, follow: bool = False) -> int:
    """Print the log of a rank (none: of all ranks, each line with its number), or with `job` what the Slurm job wrote.

    With `follow` also what is added later, until the run has ended (its exit code is returned) or Ctrl-C. Raises UserError.
    """
    logs = _Logs(rundir, rank, job)
    if not logs.print() and not follow:
        raise UserError(logs.nothing())
    if not follow:
        return EXIT_DONE
    gc.enable()  # which the command line turned off to start quickly
    queue, said = Queue(_QUEUE), ""
    checked = time.monotonic()
    while True:
        time.sleep(_LOOK)
        logs.print()
        if time.monotonic() - checked < _STATE:
            continue
        run = status(rundir, queue)
        checked = time.monotonic()
        if run.state not in (*GOES_ON, "new"):
            # a run that goes on at once leaves a marker for an instant: what has ended has ended at the second look too
            time.sleep(_LOOK)
            if (again := status(rundir, queue)).state == run.state:
                logs.print()
                _say(f"{again.name} is {again.state}: {again.reason}")
                return _code(rundir, again)
        now = f"{run.state}: {run.reason}" if run.state == "pending" else run.state
        if now != said and (said or run.state == "pending"):
            _say(f"{run.name} is {now}")
        said = now


def _say(text: str) -> None:
    print(f"graft: {text}", file=sys.stderr, flush=True)


def _code(rundir: RunDir, run: Status) -> int:
    """The exit code of a run that has ended."""
    marker = rundir.marker()
    if run.state == "done":
        return EXIT_DONE
    if run.state in ("stopped", "cancelled", "timeout"):
        return EXIT_REQUEUE
    return marker.code or EXIT_FAULT if marker is not None and marker.state == "FAILED" else EXIT_FAULT


@dataclass
class _File:
    """A log and how much of it was printed."""

    path: Path
    place: int = 0
    inode: int = 0


class _Logs:
    """The files to print. A new attempt's log, and one that was begun anew, is printed from its beginning."""

    def __init__(self, rundir: RunDir, rank: int | None, job: bool) -> None:
        self._rundir, self._rank, self._job = rundir, rank, job
        self._files: dict[str, _File] = {}
        self._of_job: Path | None = None
        self._asked = 0.0

    def nothing(self) -> str:
        """Why there is nothing to print."""
        if self._job:
            job = self._rundir.read_json(self._rundir.job).get("id")
            if job is None:
                return f"{self._rundir.name} was never a Slurm job; graft logs {self._rundir.name} shows what its ranks wrote"
            return f"{self._rundir.logs}: job {job} has written nothing yet"
        who = "no rank" if self._rank is None else f"rank {self._rank}"
        return f"{self._rundir.logs}: {who} has left {'a' if self._rank is None else 'no'} log yet"

    def print(self) -> bool:
        """Print what is new; whether there are files at all."""
        found = self._newest()
        for name, path in found.items():
            before = self._files.get(name)
            if before is None or before.path != path:
                self._files[name] = before = _File(path)
            self._print(before, f"{name}| " if len(found) > 1 else "")
        sys.stdout.flush()
        return bool(found)

    def _newest(self) -> dict[str, Path]:
        logs = self._rundir.logs
        if self._job:
            if not self._asked or time.monotonic() - self._asked > _QUEUE:
                self._of_job, self._asked = job_log(self._rundir), time.monotonic()
            return {} if self._of_job is None else {"job": self._of_job}
        if self._rank is not None:
            one = self._rundir.log_of(self._rank)
            return {} if one is None else {str(self._rank): one}
        links = sorted(link for link in logs.glob("rank-*.log") if link.exists())
        return {str(int(link.stem.rpartition("-")[2])): link.resolve() for link in links if link.stem[5:].isdigit()}

    def _print(self, file: _File, prefix: str) -> None:
        try:
            with file.path.open("rb") as log:
                facts = os.fstat(log.fileno())
                if facts.st_ino != file.inode or facts.st_size < file.place:
                    file.inode, file.place = facts.st_ino, 0
                log.seek(file.place)
                while chunk := log.read(_CHUNK):
                    # whole lines where several logs mix; a character that is half written waits for its other half
                    end = chunk.rfind(b"\n") + 1 if prefix else len(chunk) - _half(chunk)
                    if end == 0:
                        break
                    text = chunk[:end].decode("utf-8", errors="replace")
                    sys.stdout.write("".join(prefix + line for line in text.splitlines(keepends=True)) if prefix else text)
                    file.place += end
                    log.seek(file.place)
        except OSError:
            return  # gone in the meantime


def _half(chunk: bytes) -> int:
    """How many bytes at the end begin a character of UTF-8 whose rest is missing."""
    for back in range(1, min(4, len(chunk)) + 1):
        byte = chunk[-back]
        if byte & 0xC0 == 0x80:
            continue
        wanted = 4 if byte >= 0xF0 else 3 if byte >= 0xE0 else 2 if byte >= 0xC0 else 1
        return back if wanted > back else 0
    return 0


def job_log(rundir: RunDir) -> Path | None:
    """What the run's Slurm job wrote: in the run folder, in that of its sweep beside it, or where Slurm says."""
    job = str(rundir.read_json(rundir.job).get("id") or "")
    files = [file for file in rundir.logs.glob("slurm-*.out") if file.is_file()]
    known = any(expand(job))
    if known and "_" in job:
        files += rundir.path.parent.glob(f"*/log/slurm-{job}.out")
    if files or not known or not slurm.available():
        return max(files, key=lambda file: file.stat().st_mtime, default=None)
    try:
        said = slurm.command("scontrol", "show", "job", job, timeout=15)
    except (GraftError, UnicodeDecodeError):  # Slurm has forgotten it
        return None
    named = [line.partition("StdOut=")[2] for line in said.splitlines() if line.strip().startswith("StdOut=")]
    return next((Path(file) for file in named if Path(file).is_file()), None)
