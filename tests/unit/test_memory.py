"""The memory that a training took."""

from __future__ import annotations

import torch

from trainer.memory import Memory


def test_the_peak_is_what_was_there_at_once_since_then() -> None:
    before = torch.ones(40 << 20, dtype=torch.uint8)
    memory = Memory(torch.device("cpu"))
    first = memory.peak()
    assert first is not None
    assert first < 20 << 20, "what was there before does not count"
    for _ in range(3):
        block = torch.ones(100 << 20, dtype=torch.uint8)
        del block
    most = memory.peak()
    assert most is not None
    assert 95 << 20 < most < 150 << 20, "once, not three times, and still known when it is gone"
    assert before.sum() == 40 << 20
