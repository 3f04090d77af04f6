"""What a checkpoint costs the training: the hold-up of the step path, and how much slower the steps are while it is written."""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Iterable
from dataclasses import dataclass
from statistics import median

KEPT = 200  # steps without a write that are remembered: what the training was like just before
FEWEST = 3  # steps of each sort before a median says something


@dataclass(frozen=True)
class Cost:
    """Of one checkpoint: seconds that the longest held rank was held, seconds of the write, bytes of all ranks, and the median
    step during the write over the median without one (none where there were too few steps)."""

    step: int
    stall_s: float
    write_s: float
    bytes: int
    shadow: float | None

    def values(self) -> dict[str, float]:
        """Columns of the record."""
        found = {"stall_s": self.stall_s, "write_s": self.write_s, "bytes": float(self.bytes), "shadow": self.shadow}
        return {f"checkpoint/{name}": value for name, value in found.items() if value is not None}

    def text(self) -> str:
        """A line of the log."""
        slower = "" if self.shadow is None else f"; steps meanwhile took {self.shadow:.2f} times as long"
        held = f"held the training up for {1000 * self.stall_s:.1f} ms"
        return f"{self.bytes:,} bytes, {held}, written in {self.write_s:.2f} s{slower}"


def longest(costs: Iterable[Cost]) -> dict[str, float]:
    """The columns of several checkpoints that one point covers: the largest of each."""
    found: dict[str, float] = {}
    for cost in costs:
        for name, value in cost.values().items():
            found[name] = max(value, found.get(name, value))
    return found


class Shadow:
    """Times the steps from end to end, those within a write apart. A step in which something else went on is `aside`."""

    def __init__(self) -> None:
        self._alone: deque[float] = deque(maxlen=KEPT)
        self._during: list[float] = []
        self._since: tuple[float, bool] | None = None

    def step(self, writing: bool) -> None:
        """A step has ended; `writing`: whether a checkpoint is being written now."""
        now, since = time.perf_counter(), self._since
        self._since = now, writing
        if since is None or since[1] != writing:
            return  # the write began or ended within it
        (self._during if writing else self._alone).append(now - since[0])

    def aside(self) -> None:
        """The step that ends next is no measure: an evaluation or a save is in it."""
        self._since = None

    def begin(self) -> None:
        """A write begins."""
        self._during = []
        self.aside()

    def ratio(self) -> float | None:
        """The median step since `begin` over the median of those without a write."""
        during, alone = list(self._during), list(self._alone)
        if min(len(during), len(alone)) < FEWEST:
            return None
        return median(during) / median(alone)
