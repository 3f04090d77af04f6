"""Clears a test cluster away when the process that started it was killed: steps and jobs do not die with the daemons."""

from __future__ import annotations

import ctypes
import os
import signal
import sys
from pathlib import Path

from tests.cluster.daemons import TestCluster


def main() -> None:
    """Sleep until the parent is gone, then stop the cluster in the folder that is named."""
    parent = os.getppid()
    signals = {signal.SIGTERM, signal.SIGINT, signal.SIGHUP}
    signal.pthread_sigmask(signal.SIG_BLOCK, signals)
    ctypes.CDLL(None).prctl(1, signal.SIGTERM)  # PR_SET_PDEATHSIG: comes at the death of the thread that forked this process
    folder = Path(sys.argv[1])
    while os.getppid() == parent:
        signal.sigtimedwait(signals, 2)  # the parent may have died before it could be asked for that signal
    TestCluster(folder).stop()


if __name__ == "__main__":
    main()
