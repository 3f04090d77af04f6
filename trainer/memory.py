"""How much memory of the machine there is, and how much a training took at most."""

from __future__ import annotations

import contextlib
from pathlib import Path

import psutil
import torch

_STATUS, _RESET = Path("/proc/self/status"), Path("/proc/self/clear_refs")

_OWN = Path("/proc/self/cgroup")
_GROUPS = Path("/sys/fs/cgroup")
_FILES = (("memory.max", "memory.current", "inactive_file"),  # of version 2, then of 1
          ("memory.limit_in_bytes", "memory.usage_in_bytes", "total_inactive_file"))  # fmt: skip


def available() -> int:
    """Bytes of memory that this process may still have: those of the machine, or what the groups that it is in leave of their
    limits (Slurm's of a job, a container's). Files in the system's cache count as free."""
    found = [int(psutil.virtual_memory().available)]
    with contextlib.suppress(OSError):
        for line in _OWN.read_text(encoding="utf-8").splitlines():
            _, kinds, place = line.split(":", 2)
            if kinds and "memory" not in kinds.split(","):
                continue
            root = _GROUPS / "memory" if kinds else _GROUPS
            folder = root / place.strip("/")
            found += [left for one in (folder, *folder.parents) if one.is_relative_to(root) and (left := _left(one)) is not None]
    return max(0, min(found))


def _left(group: Path) -> int | None:
    """What is left of the limit of a group; none where it has none."""
    for limit, usage, cached in _FILES:
        with contextlib.suppress(OSError, ValueError):
            most, now = (int((group / name).read_text(encoding="ascii")) for name in (limit, usage))
            told = dict(line.split() for line in (group / "memory.stat").read_text(encoding="ascii").splitlines())
            return most - now + int(told.get(cached, 0))
    return None


class Memory:
    """What this rank had at most since this was made, beyond what it had then (the libraries, on a CPU).

    On a GPU what torch's allocator gave out; on a CPU the resident memory of the process without its loader workers, as Linux
    counts it; elsewhere not known.
    """

    def __init__(self, device: torch.device) -> None:
        self._device = device
        if device.type == "cuda":
            self.restart()
            self._before = torch.cuda.memory_allocated(device)
        else:
            self.restart()
            self._before = _kilobytes("VmRSS") or 0

    def restart(self) -> None:
        """Look for the peak from here on; what was there at the beginning stays what it is counted from."""
        if self._device.type == "cuda":
            torch.cuda.reset_peak_memory_stats(self._device)
            return
        with contextlib.suppress(OSError):
            _RESET.write_text("5")  # without it, what was there before counts

    def peak(self) -> int | None:
        """Bytes."""
        if self._device.type == "cuda":
            return int(torch.cuda.max_memory_allocated(self._device)) - self._before
        most = _kilobytes("VmHWM")
        return None if most is None else max(0, most - self._before) * 1024


def _kilobytes(key: str) -> int | None:
    try:
        lines = _STATUS.read_text(encoding="ascii").splitlines()
    except OSError:
        return None
    return next((int(line.split()[1]) for line in lines if line.startswith(f"{key}:")), None)
