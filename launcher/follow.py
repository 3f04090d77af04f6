"""Prints the log of a rank, and goes on while it grows."""

from __future__ import annotations

import sys
import time

from trainer.config import UserError
from trainer.rundir import RunDir


def show(rundir: RunDir, rank: int, *, follow: bool) -> None:
    """Print the log; with `follow` also what is added, in later attempts as well, until Ctrl-C."""
    file = rundir.log_of(rank)
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
        latest = rundir.log_of(rank)
        if latest != file:
            file, position = latest, 0
