"""One writer to a run folder.

The lease is a file that names its holder (host, boot, pid, start time, token) and a counter that the holder raises every few
seconds. On the holder's own host a dead process is recognised at once. On another host the counter is watched: it is stale when
it stands still for `patience`, measured with the watcher's own clock, so that clocks that disagree change nothing. The token is
the fence: a holder that was declared dead and comes back finds another token and must stop before it writes.

When the slurmd of a node dies, Slurm queues the job again while the old processes go on. So a later start of the same job takes
the lease over at once, and begins when the old holder has gone: it looks at the lease with every beat.
"""

from __future__ import annotations

import contextlib
import fcntl
import json
import os
import secrets
import signal
import socket
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass, replace
from pathlib import Path

from trainer.config import RefusedError
from trainer.rundir.folder import write_atomically
from trainer.rundir.place import slurm_start

BEAT_EVERY = 5.0
PATIENCE = 20.0
LEAVE_WITHIN = 10.0  # seconds from the moment a holder sees that it lost its lease to the end of its process


class LeaseLostError(RefusedError):
    """Another process took the run folder over; this one must not write any more."""


@dataclass(frozen=True)
class Holder:
    """Who writes to the run folder; `job` and `restart` are Slurm's, empty and 0 without it."""

    host: str
    boot: str
    pid: int
    started: float
    token: str
    beat: int
    since: str
    command: str
    job: str = ""
    restart: int = 0

    def __str__(self) -> str:
        return f"process {self.pid} on {self.host} since {self.since} ({self.command})"


def _boot() -> str:
    try:
        return Path("/proc/sys/kernel/random/boot_id").read_text(encoding="ascii").strip()
    except OSError:
        import psutil

        return str(psutil.boot_time())


def _me(token: str) -> Holder:
    import psutil  # here and below: the plan, which reads a lease that nobody holds, need not wait for it

    process = psutil.Process()
    job, restart = slurm_start()
    return Holder(
        host=socket.gethostname(), boot=_boot(), pid=os.getpid(), started=process.create_time(), token=token, beat=0,
        since=time.strftime("%Y-%m-%d %H:%M:%S"), command=" ".join(process.cmdline())[:200],
        job=job, restart=restart,
    )  # fmt: skip


def superseded(holder: Holder) -> bool:
    """Whether this process takes a lease over without asking: its holder is an earlier start of the same Slurm job."""
    job, restart = slurm_start()
    return bool(job) and job == holder.job and restart > holder.restart


def read_holder(path: Path) -> Holder | None:
    """The holder that a lease names, none when there is no lease (or an unreadable one, which no writer of ours leaves)."""
    try:
        return Holder(**json.loads(path.read_text(encoding="utf-8")))
    except (OSError, ValueError, TypeError):
        return None


def _alive_here(holder: Holder) -> bool | None:
    """Whether the holder lives, none when it is on another host."""
    if holder.host != socket.gethostname():
        return None
    if holder.boot != _boot():
        return False
    import psutil

    try:
        process = psutil.Process(holder.pid)
        return abs(process.create_time() - holder.started) < 2 and process.status() != psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return False
    except psutil.AccessDenied:
        return True


@contextmanager
def _exclusive(path: Path) -> Iterator[None]:
    """Only one process at a time decides about a lease."""
    with path.with_suffix(".lock").open("a") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        yield


def held_by(path: Path, *, patience: float = PATIENCE) -> Holder | None:
    """The living holder of a lease, or none. Takes up to `patience` seconds when the holder is on another host."""
    holder = read_holder(path)
    if holder is None:
        return None
    alive = _alive_here(holder)
    if alive is not None:
        return holder if alive else None
    deadline = time.monotonic() + patience
    while time.monotonic() < deadline:
        time.sleep(min(0.5, patience / 4))
        now = read_holder(path)
        if now is None or now.token != holder.token:
            return held_by(path, patience=patience) if now else None
        if now.beat != holder.beat:
            return now
    return None


def _outlive(holder: Holder) -> None:
    """Wait until the holder, whose lease names another now, has seen that and ended; kill it where it is in reach and has not."""
    deadline = time.monotonic() + BEAT_EVERY + LEAVE_WITHIN + 2
    while time.monotonic() < deadline and _alive_here(holder) is not False:
        time.sleep(0.2)
    if _alive_here(holder):
        with contextlib.suppress(ProcessLookupError):
            os.kill(holder.pid, signal.SIGKILL)


def refused_by(path: Path, *, patience: float = PATIENCE) -> Holder | None:
    """The living holder that a start from this process would be refused for, or none. Takes as long as `held_by`."""
    holder = read_holder(path)
    return None if holder is not None and superseded(holder) else held_by(path, patience=patience)


class Lease:
    """Holds a run folder until `release`; a thread keeps it fresh.

    `exits`: a process that lost its lease ends within LEAVE_WITHIN, wherever it hangs. Raises RefusedError when another holds it.
    """

    def __init__(self, path: Path, *, beat_every: float = BEAT_EVERY, patience: float = PATIENCE, exits: bool = False) -> None:
        self._path = path
        self._beat_every = beat_every
        self._exits = exits
        self._holder = _me(secrets.token_hex(8))
        self._lost = threading.Event()
        self._stop = threading.Event()
        before = read_holder(path)
        other = refused_by(path, patience=patience)
        with _exclusive(path):
            now = read_holder(path)
            earlier = now if now is not None and superseded(now) else None
            seen_dead = before is not None and now is not None and now.token == before.token
            if other is None and earlier is None and now is not None and not seen_dead and _alive_here(now) is not False:
                other = now  # somebody took it between the look and the lock
            if other is not None:
                raise RefusedError(f"the run folder {path.parent} is in use by {other}; wait for it or stop it first")
            write_atomically(path, json.dumps(asdict(self._holder)) + "\n")
        if earlier is not None:
            _outlive(earlier)
        self._thread = threading.Thread(target=self._keep, name="lease", daemon=True)
        self._thread.start()

    @property
    def token(self) -> str:
        """What tells this holder from any other."""
        return self._holder.token

    @property
    def lost(self) -> bool:
        """Whether the heartbeat found another holder; costs nothing, and is known some seconds later than by `check`."""
        return self._lost.is_set()

    def _mine(self) -> bool:
        now = read_holder(self._path)
        return now is not None and now.token == self._holder.token

    def _keep(self) -> None:
        while not self._stop.wait(self._beat_every):
            try:
                with _exclusive(self._path):
                    if self._stop.is_set():
                        return
                    if not self._mine():
                        self._lost.set()
                        break
                    self._holder = replace(self._holder, beat=self._holder.beat + 1)
                    write_atomically(self._path, json.dumps(asdict(self._holder)) + "\n")
            except OSError:
                continue  # a full disk or a slow file system is no reason to give the folder up
        if self._exits and not self._stop.wait(LEAVE_WITHIN):
            os.write(2, b"graft: another start of this job took the run folder over, and this one did not end by itself\n")
            os._exit(RefusedError.code)

    def check(self) -> None:
        """Raise LeaseLostError when another process took over; called before anything is committed."""
        if self._lost.is_set() or not self._mine():
            self._lost.set()
            holder = read_holder(self._path)
            what = f"another process took it over: {holder}" if holder else f"{self._path.name} is gone"
            raise LeaseLostError(f"the run folder {self._path.parent} is no longer held by this process: {what}")

    def release(self) -> None:
        """Stop the heartbeat and remove the lease, if it is still ours."""
        self._stop.set()
        self._thread.join(timeout=self._beat_every + 5)
        with _exclusive(self._path):
            if self._mine():
                self._path.unlink(missing_ok=True)
