"""attempts.jsonl: when each attempt started, where it stood and how it ended, and which ranks were slow in it."""

from __future__ import annotations

import contextlib
import json
import re
import socket
import time
from typing import Any

from trainer.config import RefusedError
from trainer.rundir import RunDir, read_points

SAME_CRASH = 3


class Journal:
    """The attempts of a run. Ranks other than 0 read the number of the attempt and write nothing."""

    def __init__(self, folder: RunDir, *, main: bool, world: int, retry: bool) -> None:
        self._path = folder.attempts
        self._main = main
        self._world = world
        self.events = read_points(self._path)
        self.attempt = sum(event.get("event") == "start" for event in self.events) + 1
        self._began = time.time()
        if main and not retry:
            self._stop_repeating(folder)

    def _stop_repeating(self, folder: RunDir) -> None:
        """Refuse after the same failure at the same step three times in a row: another start would end there again."""
        ends: dict[int, dict[str, Any]] = {e["attempt"]: e for e in self.events if e.get("event") == "end"}
        recent = [ends.get(number, {}) for number in range(self.attempt - SAME_CRASH, self.attempt)]
        # the numbers of processes and ports differ where the failure is the same
        crashes = {(e.get("state"), e.get("step"), re.sub(r"\d+", "0", str(e.get("reason")))) for e in recent}
        if len(crashes) == 1 and recent[-1].get("state") == "FAILED":
            step, reason = recent[-1].get("step"), recent[-1].get("reason")
            raise RefusedError(
                f"the last {SAME_CRASH} attempts of {folder.name} failed at step {step} with: {reason}\n"
                "find the cause first; --retry tries once more (with Slurm: graft submit, or graft resume)"
            )

    def started(self, step: int) -> None:
        self._began = time.time()
        self._write({"event": "start", "step": step, "world": self._world, "host": socket.gethostname()})

    def ended(self, state: str, step: int, reason: str) -> None:
        self._write({"event": "end", "state": state, "step": step, "reason": reason})

    def straggler(self, rank: int, host: str, seconds: float, median: float, step: int) -> None:
        """Note a rank that is slower than its peers: its own seconds a step, and their median."""
        slow = {"rank": rank, "host": host, "seconds": round(seconds, 4), "median": round(median, 4), "step": step}
        self._write({"event": "straggler", **slow})

    def _write(self, event: dict[str, Any]) -> None:
        if self._main:
            line = {"attempt": self.attempt, "time": round(time.time(), 3), **event}
            with contextlib.suppress(OSError), self._path.open("a", encoding="utf-8") as file:
                file.write(json.dumps(line) + "\n")

    def wall(self) -> float:
        """Seconds since the first attempt started, pauses included."""
        starts = [e["time"] for e in self.events if e.get("event") == "start" and "time" in e]
        return time.time() - float(min([*starts, self._began]))
