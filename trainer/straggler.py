"""Finds the rank that is slower than its peers: all others wait for it in every step."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable
from statistics import median

from trainer.watch import Heartbeat, name_of, read_ranks

COMPARE_EVERY = 10.0  # seconds
SLOWER = 1.5  # times the median of the others
AT_LEAST = 0.02  # seconds a step above it: less is noise
AGAIN_AFTER = 600.0  # seconds until the same rank is reported once more

log = logging.getLogger("graft")
Report = Callable[[int, str, float, float, int], None]


class Stragglers:
    """Called after every beat on rank 0; compares the ranks' own times a step, and reports one found slow twice in a row.

    `report(rank, host, seconds, median of the others, step)`.
    """

    def __init__(self, heart: Heartbeat, report: Report) -> None:
        self._heart, self._report = heart, report
        self._next = time.monotonic() + COMPARE_EVERY
        self._slow: set[int] = set()
        self._told: dict[int, float] = {}

    def __call__(self) -> None:
        now = time.monotonic()
        if now < self._next:
            return
        self._next = now + COMPARE_EVERY
        ranks = {rank: facts for rank, facts in read_ranks(self._heart.folder).items() if facts["seconds"] is not None}
        slow = {}
        for rank, facts in ranks.items():
            others = [other["seconds"] for number, other in ranks.items() if number != rank]
            if others and facts["seconds"] > max(SLOWER * median(others), median(others) + AT_LEAST):
                slow[rank] = median(others)
        for rank in sorted(slow.keys() & self._slow):
            if now - self._told.get(rank, -AGAIN_AFTER) < AGAIN_AFTER:
                continue
            self._told[rank] = now
            facts = ranks[rank]
            log.warning(
                "%s is slow: %.3f s a step for its data and forward pass, the median of the others is %.3f s; all wait for it",
                name_of(facts), facts["seconds"], slow[rank],
            )  # fmt: skip
            self._report(rank, facts["node"] or facts["host"], facts["seconds"], slow[rank], facts["step"])
        self._slow = set(slow)
