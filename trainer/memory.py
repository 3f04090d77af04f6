"""How much memory a training took at most."""

from __future__ import annotations

import contextlib
from pathlib import Path

import torch

_STATUS, _RESET = Path("/proc/self/status"), Path("/proc/self/clear_refs")


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
