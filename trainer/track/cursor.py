"""How many lines of the record W&B has.

Online the server says it. Offline wandb/cursor.json does: the latest attempt's first row and, once it ended, the next one.
"""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from dataclasses import asdict, dataclass
from pathlib import Path

from trainer.rundir import write_atomically


@dataclass(frozen=True)
class Attempt:
    """Rows [first, end) of the W&B run were logged by this attempt; `end` is none until it ended cleanly."""

    folder: str
    online: bool
    first: int
    server: int
    end: int | None


class Cursor:
    """The cursor file in the run's `wandb` folder."""

    def __init__(self, folder: Path) -> None:
        self._path = folder / "cursor.json"
        self._now: Attempt | None = None

    def begin(self, folder: Path, *, online: bool, server: int) -> int:
        """Open an attempt that writes to `folder`; returns its first row. `server`: how many rows the server has, when online.

        Online it is the server that must become complete: what earlier attempts left in files of theirs may never get there.
        """
        after = self._after()
        first = server if online else after
        self._now = Attempt(folder.name, online, first, server, None)
        self._write(self._now)
        return first

    def end(self, end: int) -> None:
        """The attempt's rows up to `end` (exclusive) have arrived."""
        assert self._now is not None
        self._write(Attempt(self._now.folder, self._now.online, self._now.first, self._now.server, end))

    def _write(self, attempt: Attempt) -> None:
        write_atomically(self._path, json.dumps(asdict(attempt)) + "\n")

    def _after(self) -> int:
        """The row after those that the attempts so far have logged."""
        try:
            last = Attempt(**json.loads(self._path.read_text(encoding="utf-8")))
        except FileNotFoundError:
            return 0
        if last.end is not None:
            return last.end
        folder = self._path.parent / last.folder
        rows = count_rows(folder)
        if rows == 0 and not last.online:
            shutil.rmtree(folder, ignore_errors=True)  # a fragment without a row is of no use to anybody
        return last.first + rows


def count_rows(folder: Path) -> int:
    """The history rows that a run folder of wandb holds on disk; a torn tail is not counted."""
    files = list(folder.glob("*.wandb"))
    if not files:
        return 0
    command = [sys.executable, "-m", "wandb", "leet", "inspect", "--json", str(files[0])]
    said = subprocess.run(command, stdin=subprocess.DEVNULL, capture_output=True, text=True, timeout=120)
    return sum(json.loads(line).get("type") == "history" for line in said.stdout.splitlines() if line.startswith("{"))
