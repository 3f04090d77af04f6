"""Named instants at which a test can stop this process: the only way to kill it exactly between two system calls.

`GRAFT_FAULT=point[@step][:rank]=kill|stop|term|int|usr` in the environment arms some; without it a call costs a look-up.
Nothing but a signal to this very process can be asked for.
"""

from __future__ import annotations

import os
import re
import signal

_SIGNALS = {"kill": signal.SIGKILL, "stop": signal.SIGSTOP, "term": signal.SIGTERM, "int": signal.SIGINT, "usr": signal.SIGUSR1}
_PATTERN = re.compile(r"(?P<point>[a-z-]+)(@(?P<step>\d+))?(:(?P<rank>\d+))?=(?P<action>[a-z]+)")


def _armed() -> dict[str, tuple[int | None, str, signal.Signals]]:
    found: dict[str, tuple[int | None, str, signal.Signals]] = {}
    for text in filter(None, os.environ.get("GRAFT_FAULT", "").split(",")):
        match = _PATTERN.fullmatch(text)
        if match is None or match["action"] not in _SIGNALS:
            raise ValueError(f"GRAFT_FAULT: {text!r} is not point[@step][:rank]=kill|stop|term|int|usr")
        found[match["point"]] = (int(match["step"]) if match["step"] else None, match["rank"] or "", _SIGNALS[match["action"]])
    return found


_ARMED = _armed()


def reached(point: str, step: int | None = None) -> None:
    """Say that a named instant is reached."""
    if not _ARMED or point not in _ARMED:
        return
    at, rank, action = _ARMED[point]
    if (at is None or at == step) and rank in ("", os.environ.get("RANK", "0")):
        os.kill(os.getpid(), action)
