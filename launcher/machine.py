"""What this machine has, found without torch."""

from __future__ import annotations

import os
import re
from dataclasses import dataclass
from pathlib import Path

DEVICES = Path("/dev")


@dataclass(frozen=True)
class Machine:
    """The GPUs and CPU cores that a run started here can use."""

    gpus: int
    cores: int


def here() -> Machine:
    """This machine, as CUDA_VISIBLE_DEVICES and the CPU affinity of this process leave it."""
    return Machine(_gpus(), len(os.sched_getaffinity(0)))


def _gpus() -> int:
    present = sum(1 for device in DEVICES.glob("nvidia*") if re.fullmatch(r"nvidia[0-9]+", device.name))
    visible = os.environ.get("CUDA_VISIBLE_DEVICES")
    if visible is None or not present:
        return present
    count = 0
    for name in visible.split(","):
        if not name.strip() or name.strip().startswith("-"):
            break  # CUDA ignores everything from the first invalid entry on
        count += 1
    return count
