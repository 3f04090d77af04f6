"""A training as people write it, for each launcher to start: `script.py PICTURES OUT`; OUT: ranks, time of the first step."""

from __future__ import annotations

import argparse
import os
import sys
import time
from pathlib import Path
from typing import Any

import torch
import torchvision
from torch.nn import functional
from torchvision.transforms import v2

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
from benchmarks.resnet20 import resnet20

BATCH = 32


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("pictures")
    parser.add_argument("out", type=Path)
    parser.add_argument("--local_rank", type=int)  # deepspeed gives it
    chosen = parser.parse_args()
    world, rank = int(os.environ.get("WORLD_SIZE", "1")), int(os.environ.get("RANK", "0"))
    torch.set_num_threads(1)
    torch.manual_seed(0)
    model: Any = resnet20()
    if world > 1:
        torch.distributed.init_process_group("gloo")
        model = torch.nn.parallel.DistributedDataParallel(model)
    transform = v2.Compose([v2.ToImage(), v2.ToDtype(torch.float32, scale=True), v2.Normalize([0.5] * 3, [0.5] * 3)])
    pictures = torchvision.datasets.ImageFolder(chosen.pictures, transform)
    sampler: Any = torch.utils.data.DistributedSampler(pictures) if world > 1 else torch.utils.data.RandomSampler(pictures)
    loader: Any = torch.utils.data.DataLoader(pictures, batch_size=BATCH // world, sampler=sampler)
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3)
    for step, (images, labels) in enumerate(loader):
        loss: Any = functional.cross_entropy(model(images), labels)
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
        if step == 0 and rank == 0:
            chosen.out.write_text(f"{world} {time.time()}")
    if world > 1:
        torch.distributed.destroy_process_group()


if __name__ == "__main__":
    main()
