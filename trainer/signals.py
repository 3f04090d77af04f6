"""A signal sets a flag; the loop reads it between two steps."""

from __future__ import annotations

import contextlib
import ctypes
import os
import signal
from types import FrameType

from trainer.config import EXIT_REFUSED

_PR_SET_PDEATHSIG = 1
_INTERRUPTED = 130


class StopFlag:
    """Set by SIGTERM, SIGUSR1 or Ctrl-C. A second Ctrl-C ends the process at once: checkpoints are safe at every instant."""

    def __init__(self) -> None:
        self.reason: str | None = None
        self._pid = os.getpid()
        for number in (signal.SIGTERM, signal.SIGUSR1, signal.SIGINT):
            signal.signal(number, self._handle)

    def _handle(self, number: int, frame: FrameType | None) -> None:
        if os.getpid() != self._pid:
            return  # a forked loader worker before it installed its own handlers
        if number == signal.SIGINT and self.reason == "SIGINT":
            os._exit(_INTERRUPTED)
        self.reason = signal.Signals(number).name

    def __bool__(self) -> bool:
        return self.reason is not None


def die_with_parent() -> None:
    """Ask the kernel to kill this process when the one that started it dies, where a launcher started it.

    Not for a trainer that a person put in the background of a shell: it must outlive the shell.
    """
    if "GRAFT_LAUNCHED" not in os.environ and "TORCHELASTIC_RUN_ID" not in os.environ:
        return
    parent = os.getppid()
    with contextlib.suppress(OSError, AttributeError):  # not Linux
        ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
    if os.getppid() != parent:
        os._exit(EXIT_REFUSED)  # it died between the two calls
