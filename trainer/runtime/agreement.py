"""What the ranks wish, agreed on without waiting for a message."""

from __future__ import annotations

import time
from typing import Any

import torch
import torch.distributed as dist

LONG_STEP = 0.2  # seconds
_WISHES = 4  # bits


class Agreement:
    """What any rank wishes (bits of an integer), known to all at the same step.

    With several ranks the answer to what was asked at one step arrives at the next, so that no step waits for a message. Where
    steps take long, a message costs little and a step too many costs the time that a signal leaves: there it is waited for.
    """

    def __init__(self, group: Any) -> None:
        self._group = group
        self._flight: tuple[torch.Tensor, Any] | None = None
        self._slow = False  # agreed as well: any rank's step took long
        self._asked = time.monotonic()

    def ask(self, wishes: int) -> int:
        """Hand this rank's wishes in; returns what all ranks together wished at the last call (alone, and after a long step: at
        this one).

        A wish that is granted with this call is not handed in again: it would be granted twice.
        """
        if self._group is None:
            return wishes
        now = time.monotonic()
        slow, self._asked = now - self._asked > LONG_STEP, now
        result = self.settle()
        wishes &= ~result
        values = torch.tensor([*(wishes >> bit & 1 for bit in range(_WISHES)), slow], dtype=torch.int32)
        self._flight = (values, dist.all_reduce(values, op=dist.ReduceOp.MAX, group=self._group, async_op=True))
        return result | self.settle() if self._slow else result

    def settle(self) -> int:
        """Wait for the answer under way and return it."""
        if self._flight is None:
            return 0
        values, work = self._flight
        self._flight = None
        work.wait()
        *wished, slow = values.tolist()
        self._slow = bool(slow)
        return sum(bit << place for place, bit in enumerate(wished))
