"""The memory that a training took."""

from __future__ import annotations

import subprocess
import sys

from tests.trainers import ROOT

# in a process of its own: what the other tests of this one let go of would hide what is counted
PROGRAM = """
import torch
from trainer.memory import Memory

before = torch.ones(40 << 20, dtype=torch.uint8)
memory = Memory(torch.device("cpu"))
first = memory.peak()
for _ in range(3):
    block = torch.ones(100 << 20, dtype=torch.uint8)
    del block
print(first, memory.peak(), int(before.sum()))
"""


def test_the_peak_is_what_was_there_at_once_since_then() -> None:
    done = subprocess.run([sys.executable, "-c", PROGRAM], cwd=ROOT, capture_output=True, text=True, check=True)
    first, most, _ = map(int, done.stdout.split())
    assert first < 20 << 20, "what was there before does not count"
    assert 95 << 20 < most < 150 << 20, "once, not three times, and still known when it is gone"
