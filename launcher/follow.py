"""Prints the log of a rank, and goes on while it grows."""

from __future__ import annotations

import sys
import time
from pathlib import Path

from trainer.config import UserError
from trainer.rundir import RunDir


def newest(rundir: RunDir, rank: int) -> Path | None:
    """The log of a rank's latest attempt."""
    files = [f for f in rundir.logs.glob(f"*rank-{rank:05d}*.log") if f.is_file()]
    return max(files, key=lambda f: f.stat().st_mtime, default=None)


def show(rundir: RunDir, rank: int, *, follow: bool) -> None:
    """Print the log; with `follow` also what is added, in later attempts as well, until Ctrl-C."""
    file = newest(rundir, rank)
    if file is None and not follow:
        raise UserError(f"{rundir.logs}: rank {rank} has left no log yet")
    position = 0
    while True:
        if file is not None:
            with file.open("rb") as log:
                log.seek(position)
                sys.stdout.write(log.read().decode("utf-8", errors="replace"))
                position = log.tell()
            sys.stdout.flush()
        if not follow:
            return
        time.sleep(0.5)
        latest = newest(rundir, rank)
        if latest != file:
            file, position = latest, 0
