"""Every path of a run, and the markers that say how its last attempt ended."""

from __future__ import annotations

import contextlib
import errno
import json
import os
import tempfile
import time
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal

from trainer.config import RefusedError, Run, UserError, changes, dump, resolved, resumed
from trainer.rundir.place import slurm_start

State = Literal["DONE", "REQUEUE", "FAILED"]
STATES: tuple[State, ...] = ("DONE", "REQUEUE", "FAILED")


def fsync_folder(folder: Path) -> None:
    """Make the names in a folder durable."""
    handle = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def write_atomically(path: Path, text: str) -> None:
    """Replace a small file so that a reader, or a crash at any instant, sees the old text or the new."""
    handle, name = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.", suffix=".tmp")
    temporary = Path(name)
    try:
        with os.fdopen(handle, "w", encoding="utf-8") as file:
            file.write(text)
            file.flush()
            os.fsync(file.fileno())
        temporary.chmod(0o644)
        temporary.replace(path)
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise
    fsync_folder(path.parent)


@dataclass(frozen=True)
class Marker:
    """How the last attempt ended: DONE, REQUEUE (start the same command again) or FAILED, with the reason and the exit code.

    `again`: nobody wished it to stop; it can be started again at once.
    """

    state: State
    reason: str
    code: int
    step: int = 0
    time: float = 0.0
    again: bool = False


@dataclass(frozen=True)
class RunDir:
    """The run folder at `path`; one place that knows the name of everything in it."""

    path: Path

    @property
    def name(self) -> str:
        return self.path.name

    @property
    def config(self) -> Path:
        return self.path / "run.yaml"

    @property
    def manifest(self) -> Path:
        return self.path / "manifest.json"

    @property
    def metrics(self) -> Path:
        return self.path / "metrics.jsonl"

    @property
    def summary(self) -> Path:
        return self.path / "summary.json"

    @property
    def sizes(self) -> Path:
        """What `train.micro_batch: auto` came to, where less than a rank's whole share fits, or that was tried."""
        return self.path / "micro-batch.json"

    @property
    def operations(self) -> Path:
        """How many operations a sample takes, where that was counted."""
        return self.path / "operations.json"

    @property
    def attempts(self) -> Path:
        """One JSON line a start and an end of an attempt."""
        return self.path / "attempts.jsonl"

    @property
    def job(self) -> Path:
        """The Slurm job that this run was last given to: id (as squeue prints it), cluster, time of submission."""
        return self.path / "job.json"

    @property
    def jobs(self) -> Path:
        """One JSON line a start and an end of a Slurm job (a requeued job starts again)."""
        return self.path / "jobs.jsonl"

    @property
    def bad_nodes(self) -> Path:
        """One JSON line for each node that failed a check: node, problem, job, restart."""
        return self.path / "log" / "bad-nodes.jsonl"

    @property
    def code(self) -> Path:
        """The snapshot of the code that the run was submitted with."""
        return self.path / "code"

    @property
    def logs(self) -> Path:
        return self.path / "log"

    @property
    def checkpoints(self) -> Path:
        return self.path / "checkpoints"

    @property
    def samples(self) -> Path:
        return self.path / "samples"

    @property
    def prior(self) -> Path:
        """Images that the untouched weights of a generator drew before the training."""
        return self.path / "prior"

    @property
    def report(self) -> Path:
        return self.path / "report.html"

    @property
    def export(self) -> Path:
        return self.path / "export"

    @property
    def lease(self) -> Path:
        return self.path / "lease.json"

    @property
    def ranks(self) -> Path:
        """One file a rank of the running attempt: host, pid, step, heartbeat."""
        return self.path / "log" / "ranks"

    def log_of(self, rank: int) -> Path | None:
        """The log of a rank's latest attempt."""
        path = self.logs / f"rank-{rank:05d}.log"
        return path.resolve() if path.exists() else None

    def covered(self) -> int:
        """How many points of the record the newest checkpoint covers: a kill does not undo them. 0 before the first."""
        for folder in sorted(self.checkpoints.glob("step-*"), key=lambda f: (len(f.name), f.name), reverse=True):
            progress = self.read_json(folder / "state.json").get("progress")
            if isinstance(progress, dict):  # else it was rotated away since
                return int(progress.get("points", 0))
        return 0

    def exists(self) -> bool:
        return self.config.is_file()

    def untouched(self) -> bool:
        """Whether no attempt got as far as a point or a checkpoint and none is running: other settings spoil nothing."""
        learnt = self.metrics.is_file() and self.metrics.stat().st_size > 0
        return not learnt and not self.lease.exists() and not any(self.checkpoints.glob("step-*"))

    def load(self) -> Run:
        """The resolved run file of this folder; UserError when there is none."""
        if not self.exists():
            raise UserError(f"{self.path}: not a run folder (it has no run.yaml)")
        return resolved(self.config)

    def difference(self, run: Run) -> list[str]:
        """What a run would change in the settings here, line by line; nothing where there are none yet."""
        return changes(self.load(), run) if self.exists() else []

    def create(self) -> None:
        """Make the folder, if it is not there. Raises RefusedError when it cannot be written."""
        try:
            for folder in (self.path, self.logs, self.checkpoints, self.samples):
                folder.mkdir(parents=True, exist_ok=True)
            with tempfile.TemporaryFile(dir=self.path) as probe:
                probe.write(b"x")
        except OSError as error:
            what = {errno.ENOSPC: "the disk is full", errno.EROFS: "the file system is read-only"}.get(
                error.errno or 0, error.strerror
            )
            raise RefusedError(
                f"the run folder {self.path} cannot be written: {what}; choose another with --runs FOLDER"
            ) from None

    def prepare(self, run: Run, *, accept_changes: bool) -> None:
        """Create the folder, or open it again for the same run. Only for who holds the lease, or looked that nobody does.

        Raises RefusedError when it cannot be written or when the run file changed what would be learnt (the difference is
        shown; `accept_changes` takes the new settings over). Where nothing was learnt yet, a corrected run file, or
        corrected data, is taken as it is.
        """
        self.create()
        difference = self.difference(run)
        if self.untouched():
            self.manifest.unlink(missing_ok=True)
        elif difference and not accept_changes:
            raise RefusedError(
                f"{self.path} holds a run with other settings:\n  "
                + "\n  ".join(difference)
                + "\ngive the run another name, or pass --accept-changes to go on with the new settings"
            )
        elif self.exists():
            run = resumed(self.load(), run)
        text = dump(run)
        if not self.config.is_file() or self.config.read_text(encoding="utf-8") != text:
            write_atomically(self.config, text)

    def mark(self, state: State, reason: str, code: int, step: int = 0, *, again: bool = False) -> None:
        """Leave one marker, in place of any other."""
        marker = Marker(state, reason, code, step, time.time(), again)
        write_atomically(self.path / state, json.dumps(asdict(marker)) + "\n")
        for other in STATES:
            if other != state:
                (self.path / other).unlink(missing_ok=True)

    def report_bad(self, node: str, problem: str) -> None:
        """Note a node that this Slurm job should not get again."""
        job, restart = slurm_start()
        line = {"node": node, "problem": problem, "job": job, "restart": restart, "time": round(time.time(), 3)}
        with contextlib.suppress(OSError):  # where the folder cannot be written, the nodes that can will say it
            handle = os.open(self.bad_nodes, os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o644)
            try:
                os.write(handle, (json.dumps(line) + "\n").encode())
            finally:
                os.close(handle)

    def clear_markers(self) -> None:
        for state in STATES:
            (self.path / state).unlink(missing_ok=True)

    def marker(self) -> Marker | None:
        """How the last attempt ended; none while it runs and after a kill."""
        for state in STATES:
            try:
                return Marker(**json.loads((self.path / state).read_text(encoding="utf-8")))
            except (OSError, ValueError, TypeError):
                continue
        return None

    def read_json(self, path: Path) -> dict[str, Any]:
        """A JSON file of the folder, empty when it is missing or torn."""
        try:
            value = json.loads(path.read_text(encoding="utf-8"))
        except (OSError, ValueError):
            return {}
        return value if isinstance(value, dict) else {}
