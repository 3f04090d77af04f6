"""All processes that a launch started, however deep, and how to reach and end them."""

from __future__ import annotations

import ctypes
import json
import os
import signal
import socket
import time
from pathlib import Path

import psutil

_PR_SET_CHILD_SUBREAPER = 36


class ProcessTree:
    """The descendants of this process. From here on an orphan among them becomes its child, so that none is lost sight of."""

    def __init__(self) -> None:
        ctypes.CDLL(None, use_errno=True).prctl(_PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0)
        self._told: set[int] = set()

    def alive(self) -> dict[int, psutil.Process]:
        """The living descendants by pid."""
        found = {}
        for process in psutil.Process().children(recursive=True):
            try:
                if process.status() != psutil.STATUS_ZOMBIE:
                    found[process.pid] = process
            except psutil.NoSuchProcess:
                continue
        return found

    def send_to_ranks(self, number: signal.Signals, folder: Path) -> None:
        """Send a signal once to each rank that has registered in the folder: its handlers are in place.

        Files that another attempt left are passed over: the process must be a descendant, started when the file says.
        """
        alive = self.alive()
        for file in folder.glob("rank-*.json"):
            try:
                rank = json.loads(file.read_text(encoding="utf-8"))
                pid, host, started = int(rank["pid"]), rank["host"], float(rank["started"])
                process = alive.get(pid)
                if process is None or pid in self._told or host != socket.gethostname():
                    continue
                if abs(process.create_time() - started) < 2:
                    os.kill(pid, number)
                    self._told.add(pid)
            except (OSError, ValueError, KeyError, TypeError, psutil.NoSuchProcess):
                continue  # half written, or gone in the meantime; looked at again in the next round

    def end(self, *, grace: float) -> None:
        """Wait for what is left to end by itself, then kill it."""
        deadline = time.monotonic() + grace
        while self.alive() and time.monotonic() < deadline:
            time.sleep(0.05)
        self.kill()

    def kill(self) -> None:
        """SIGKILL to every descendant until none is left (a process in an uninterruptible wait is given up after 5 s)."""
        deadline = time.monotonic() + 5
        while (processes := self.alive()) and time.monotonic() < deadline:
            for process in processes.values():
                try:
                    process.kill()
                except psutil.NoSuchProcess:
                    continue
            psutil.wait_procs(list(processes.values()), timeout=0.2)
