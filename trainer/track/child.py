"""What the processes that talk to wandb have in common: they speak in JSON lines, and end with who started them."""

from __future__ import annotations

import fcntl
import json
import os
import signal
import threading
import time
from pathlib import Path
from typing import IO, Any

import psutil

_OUT = 1


def begin(parent: int) -> None:
    """Leave signals to the parent, keep stdout for `say`, and end as soon as the parent is gone."""
    global _OUT
    for ignored in (signal.SIGINT, signal.SIGTERM, signal.SIGUSR1, signal.SIGHUP):
        signal.signal(ignored, signal.SIG_IGN)  # the parent decides when to finish
    _OUT = os.dup(1)
    os.dup2(2, 1)  # what libraries print goes to the log
    threading.Thread(target=_end_with, args=(parent,), daemon=True).start()


def say(**message: Any) -> None:
    """A line for the parent."""
    os.write(_OUT, json.dumps(message).encode() + b"\n")


def tell(level: str, text: str) -> None:
    """A line for the parent to log."""
    say(level=level, text=text)


def _end_with(parent: int) -> None:
    """End this process and wandb's service as soon as the parent is gone: the next one must find nobody here."""
    while os.getppid() == parent:
        time.sleep(0.2)
    end(0)


def end(code: int) -> None:
    """End this process and every one that it started."""
    for process in psutil.Process().children(recursive=True):
        process.kill()
    os._exit(code)


def lock(path: Path, patience: float) -> IO[str]:
    """Hold a lock file until the returned file is closed, or this process ends. Raises OSError when another holds it for long."""
    path.parent.mkdir(parents=True, exist_ok=True)
    file = path.open("a")
    deadline = time.monotonic() + patience
    while True:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            if time.monotonic() > deadline:
                file.close()
                raise
            time.sleep(0.1)
        else:
            return file
