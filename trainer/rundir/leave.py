"""The end of a process."""

from __future__ import annotations

import contextlib
import logging
import os
import sys


def exit_now(code: int) -> None:
    """End this process without taking the interpreter apart: with torch loaded that takes a second or more, which a job that
    was told to leave does not have. Everything that must be kept is in its files by now; what is printed is flushed."""
    logging.shutdown()
    for stream in (sys.stdout, sys.stderr):
        with contextlib.suppress(OSError, ValueError):
            stream.flush()
    os._exit(code)
