"""How long a checkpoint of 100 MB holds the training up: `python -m benchmarks.checkpoint`.

Compared with a copy of the same tensors into memory that was allocated and touched before; and how much slower the steps are
while the file is written ("shadow").
"""

from __future__ import annotations

import shutil
import sys
import tempfile
import time
from pathlib import Path
from statistics import median

import torch

from trainer.checkpoint import Saver, Store

MEGABYTES, TENSORS, TIMES = 100, 160, 15


def work(matrix: torch.Tensor) -> float:
    """Seconds of something like a training step."""
    began = time.perf_counter()
    for _ in range(10):
        torch.mm(matrix, matrix)
    return time.perf_counter() - began


def main() -> int:
    torch.set_num_threads(1)
    size = MEGABYTES * 1_000_000 // TENSORS // 4
    tensors = {f"layer{number}.weight": torch.randn(size) for number in range(TENSORS)}
    copies = {name: torch.zeros_like(tensor) for name, tensor in tensors.items()}
    memcpy = []
    for _ in range(TIMES + 2):
        began = time.perf_counter()
        for name, tensor in tensors.items():
            copies[name].copy_(tensor)
        memcpy.append(time.perf_counter() - began)
    memcpy = memcpy[2:]

    folder = Path(tempfile.mkdtemp(prefix="graft-benchmark-", dir=Path.cwd()))
    committed: list[int] = []
    saver = Saver(Store(folder, keep=2), before_write=lambda: None, on_commit=committed.append)
    saver.reserve({"model.safetensors": tensors})
    stalls, commits, shadows = [], [], []
    matrix = torch.randn(512, 512)
    alone = median(work(matrix) for _ in range(30))
    for step in range(1, TIMES + 1):
        began = time.perf_counter()
        saver.save(step, {"model.safetensors": tensors}, {"samples": step})
        stalls.append(time.perf_counter() - began)
        during = []
        while step not in committed:
            during.append(work(matrix))
        commits.append(time.perf_counter() - began)
        shadows.append(median(during) / alone)
        saver.join()
    shutil.rmtree(folder)
    ratio = median(stalls) / median(memcpy)
    print(f"copy of {MEGABYTES} MB in {TENSORS} tensors: median {median(memcpy) * 1e3:.1f} ms of {TIMES}")
    held, largest = median(stalls) * 1e3, max(stalls) * 1e3
    print(f"hold-up by a checkpoint: median {held:.1f} ms, largest {largest:.1f} ms; {ratio:.2f} copies (goal 1.5)")
    durable, shadow = median(commits) * 1e3, median(shadows)
    print(f"until it is durable, in the background: median {durable:.0f} ms; a step meanwhile takes {shadow:.2f} times as long")
    return 0


if __name__ == "__main__":
    sys.exit(main())
