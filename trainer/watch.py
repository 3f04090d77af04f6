"""Every rank shows that it lives and where it is; when a collective fails, the rank that did not answer can be named."""

from __future__ import annotations

import contextlib
import json
import logging
import os
import socket
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import psutil

BEAT_EVERY = 1.0
log = logging.getLogger("graft")


# The stages of a step in their order; the ranks meet in the last backward pass of each phase, in `gather` and at `barrier`.
STAGES = ("between", "evaluate", "make", "gather", "record", "save", "barrier", "data", "forward", "backward", "optimizer")


class Heartbeat:
    """Writes `rank-00000.json` every second until `close`: who this rank is, that it lives, where it is.

    host, node (Slurm's name of it, or ''), pid, started, main (id of the main thread), rank; step, stage, position (compares
    between ranks: the lower one is behind), beat (a stopped process has none), hangs, seconds (own time a step, or null).
    The launcher finds the processes here.
    """

    def __init__(self, folder: Path, rank: int) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        self.folder, self.rank = folder, rank
        self.step = 0
        self.ticks = 0  # something happened: compared for equality only
        self.hangs = False
        self.pace: Callable[[], float | None] = lambda: None
        self._place: tuple[str, int, int] = ("between", 0, 0)
        self._watchers: tuple[Callable[[], None], ...] = ()
        self._path = folder / f"rank-{rank:05d}.json"
        self._facts: dict[str, Any] = {
            "host": socket.gethostname(), "node": os.environ.get("SLURMD_NODENAME", ""), "pid": os.getpid(),
            "started": psutil.Process().create_time(), "main": threading.main_thread().ident, "rank": rank,
        }  # fmt: skip
        self._beat = 0
        self._stop = threading.Event()
        self.write()
        self._thread = threading.Thread(target=self._keep, name="heartbeat", daemon=True)
        self._thread.start()

    def at(self, stage: str, phase: int = 0, left: int = 0) -> None:
        """Say where in the step the training is: one of STAGES, the number of the phase, and how many micro-batches are left."""
        self._place = (stage, phase, left)
        self.ticks += 1

    @property
    def stage(self) -> str:
        """Where the training is."""
        return self._place[0]

    @contextlib.contextmanager
    def watched(self, *watchers: Callable[[], None]) -> Iterator[None]:
        """Within this, each watcher is called after every beat, in the heart's thread."""
        self._watchers = watchers
        try:
            yield
        finally:
            self._watchers = ()

    def write(self) -> None:
        stage, phase, left = self._place
        order = STAGES.index(stage)
        inside = order >= STAGES.index("forward")
        now = {
            "step": self.step, "stage": stage, "position": [self.step, inside, phase, -left, order], "beat": self._beat,
            "hangs": self.hangs, "seconds": self.pace(),
        }  # fmt: skip
        temporary = self._path.with_suffix(".tmp")
        with contextlib.suppress(OSError):  # a full disk is no reason to stop
            temporary.write_text(json.dumps(self._facts | now), encoding="utf-8")
            temporary.replace(self._path)

    def _keep(self) -> None:
        while not self._stop.wait(BEAT_EVERY):
            self._beat += 1
            self.write()
            for watcher in self._watchers:
                try:
                    watcher()
                except Exception:  # a heart that stops would be taken for a dead process
                    log.exception("a watcher failed")

    def close(self) -> None:
        self._stop.set()
        self._thread.join()
        self._path.unlink(missing_ok=True)


def read_ranks(folder: Path) -> dict[int, dict[str, Any]]:
    """What the heartbeats of all ranks say, by rank."""
    found = {}
    for path in folder.glob("rank-*.json"):
        with contextlib.suppress(OSError, ValueError):
            facts = json.loads(path.read_text(encoding="utf-8"))
            found[int(facts["rank"])] = facts
    return found


def name_of(facts: dict[str, Any]) -> str:
    """Rank, process and host in words."""
    node = f", Slurm's {facts['node']}" if facts["node"] not in ("", facts["host"]) else ""
    return f"rank {facts['rank']} (process {facts['pid']} on {facts['host']}{node})"


def _lives(pid: int) -> bool:
    try:
        return psutil.Process(pid).status() != psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return False


def suspects(folder: Path, *, me: int, world: int, patience: float = 3 * BEAT_EVERY) -> str:
    """Who is to blame for a collective that failed: ranks that are gone, whose heart stands still, or that are behind."""
    before = read_ranks(folder)
    time.sleep(patience)
    after = read_ranks(folder)
    blamed = []
    newest = max((facts["step"] for facts in after.values()), default=0)
    for rank in range(world):
        if rank == me:
            continue
        if rank not in after:
            blamed.append(f"rank {rank} has left")
            continue
        facts = after[rank]
        who = name_of(facts)
        local = facts["host"] == socket.gethostname()
        if local and not _lives(facts["pid"]):
            blamed.append(f"{who} died at step {facts['step']}")
        elif before.get(rank, {}).get("beat") == facts["beat"]:
            blamed.append(f"{who} stands still at step {facts['step']}: no heartbeat for {patience:.0f} s")
        elif facts["step"] < newest:
            blamed.append(f"{who} is at step {facts['step']} while others are at {newest}")
    return "; ".join(blamed) or "no other rank stands out"
