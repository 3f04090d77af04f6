"""Every rank shows that it lives and where it is; when a collective fails, the rank that did not answer can be named."""

from __future__ import annotations

import contextlib
import json
import os
import socket
import threading
import time
from pathlib import Path
from typing import Any

import psutil

BEAT_EVERY = 1.0


class Heartbeat:
    """Writes `rank-00000.json` (host, pid, started, rank, step, beat) every second until `close`.

    The beat tells a stopped process from a waiting one, the step who is behind. The launcher finds the processes here.
    """

    def __init__(self, folder: Path, rank: int) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        self.step = 0
        self._path = folder / f"rank-{rank:05d}.json"
        self._facts: dict[str, Any] = {
            "host": socket.gethostname(), "pid": os.getpid(), "started": psutil.Process().create_time(), "rank": rank,
        }  # fmt: skip
        self._beat = 0
        self._stop = threading.Event()
        self._write()
        self._thread = threading.Thread(target=self._keep, name="heartbeat", daemon=True)
        self._thread.start()

    def _write(self) -> None:
        text = json.dumps(self._facts | {"step": self.step, "beat": self._beat})
        temporary = self._path.with_suffix(".tmp")
        with contextlib.suppress(OSError):  # a full disk is no reason to stop
            temporary.write_text(text, encoding="utf-8")
            temporary.replace(self._path)

    def _keep(self) -> None:
        while not self._stop.wait(BEAT_EVERY):
            self._beat += 1
            self._write()

    def close(self) -> None:
        self._stop.set()
        self._thread.join()
        self._path.unlink(missing_ok=True)


def _read(folder: Path) -> dict[int, dict[str, Any]]:
    found = {}
    for path in folder.glob("rank-*.json"):
        with contextlib.suppress(OSError, ValueError):
            facts = json.loads(path.read_text(encoding="utf-8"))
            found[int(facts["rank"])] = facts
    return found


def _lives(pid: int) -> bool:
    try:
        return psutil.Process(pid).status() != psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return False


def suspects(folder: Path, *, me: int, world: int, patience: float = 3 * BEAT_EVERY) -> str:
    """Who is to blame for a collective that failed: ranks that are gone, whose heart stands still, or that are behind."""
    before = _read(folder)
    time.sleep(patience)
    after = _read(folder)
    blamed = []
    newest = max((facts["step"] for facts in after.values()), default=0)
    for rank in range(world):
        if rank == me:
            continue
        if rank not in after:
            blamed.append(f"rank {rank} has left")
            continue
        facts = after[rank]
        who = f"rank {rank} (process {facts['pid']} on {facts['host']})"
        local = facts["host"] == socket.gethostname()
        if local and not _lives(facts["pid"]):
            blamed.append(f"{who} died at step {facts['step']}")
        elif before.get(rank, {}).get("beat") == facts["beat"]:
            blamed.append(f"{who} stands still at step {facts['step']}: no heartbeat for {patience:.0f} s")
        elif facts["step"] < newest:
            blamed.append(f"{who} is at step {facts['step']} while others are at {newest}")
    return "; ".join(blamed) or "no other rank stands out"
