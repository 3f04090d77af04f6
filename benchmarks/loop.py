"""What graft's loop costs over a bare PyTorch loop for a tiny network: `python -m benchmarks.loop`.

The same network, weights, batches, clipping, schedule and loss record; the final weights must be equal to the bit. Pairs are run
interleaved (A B B A) after a warm-up, beside a control that compares the bare loop with itself.
"""

from __future__ import annotations

import itertools
import math
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from statistics import median
from typing import Any

import torch
from torch import nn
from torch.nn import functional

from trainer.config.amounts import parse_amount
from trainer.config.run import Parallel, Train
from trainer.data import Batch
from trainer.data.order import mix
from trainer.loop import Job, train
from trainer.progress import Clock, Progress
from trainer.runtime import Runtime
from trainer.session import Silent
from trainer.spec import ParamGroup
from trainer.tasks.base import Phase
from trainer.watch import Heartbeat

STEPS, BATCH, FEATURES, CLASSES, LR, CLIP, LOG_EVERY = 3000, 32, 64, 10, 1e-3, 1.0, 10
PAIRS = 10


def network() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(FEATURES, 128), nn.ReLU(), nn.Dropout(0.1), nn.Linear(128, CLASSES))


def data() -> list[Batch]:
    generator = torch.Generator().manual_seed(1)
    return [
        Batch(
            torch.randn(BATCH, FEATURES, generator=generator),
            torch.randint(CLASSES, (BATCH,), generator=generator),
            torch.arange(BATCH),
        )
        for _ in range(64)
    ]


def cosine(samples: int) -> float:
    return (1 + math.cos(math.pi * samples / (STEPS * BATCH))) / 2


def seed(step: int, rank: int, index: int) -> int:
    return mix(0, step, rank, index)


def bare(batches: list[Batch]) -> tuple[float, nn.Module]:
    """A loop as a careful person writes it: seconds and the trained network."""
    model = network()
    optimizer = torch.optim.AdamW(model.parameters(), lr=LR)
    waiting: list[torch.Tensor] = []
    record: list[float] = []
    began = time.perf_counter()
    for step, batch in zip(range(STEPS), itertools.cycle(batches), strict=False):
        optimizer.param_groups[0]["lr"] = LR * cosine(step * BATCH)
        torch.default_generator.manual_seed(seed(step, 0, 0))
        loss = functional.cross_entropy(model(batch.images), batch.labels, reduction="none").sum() / BATCH
        loss.backward()  # type: ignore[no-untyped-call]
        torch.nn.utils.clip_grad_norm_(model.parameters(), CLIP)
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
        waiting.append(loss.detach())
        if (step + 1) % LOG_EVERY == 0:
            record.append(torch.stack(waiting).mean().item())
            waiting.clear()
    return time.perf_counter() - began, model


def nothing(*_: Any) -> None:
    """In place of what the bare loop does not do either: saving and showing."""


def graft(batches: list[Batch], runtime: Runtime, heart: Heartbeat) -> tuple[float, nn.Module]:
    """The same through graft's loop, with all its checks."""
    model = network()

    def loss(module: nn.Module, batch: Batch) -> torch.Tensor:
        return functional.cross_entropy(module(batch.images), batch.labels, reduction="none")

    clock = Clock(parse_amount("1 h", times=True), epoch_samples=10**9, step_samples=BATCH, now=time.monotonic())
    steps = ([batch] for batch in itertools.cycle(batches))
    groups = [ParamGroup(list(model.named_parameters()))]
    engine = runtime.engine(model, model, groups, lambda given: torch.optim.AdamW(model.parameters(), lr=LR))
    job = Job(
        momentum=None, react=lambda progress: None,
        runtime=runtime, phases=[Phase("model", model, engine, loss)], average=None,
        batches=steps,
        prepare=lambda batch: batch, steps=STEPS, global_batch=BATCH, epoch_samples=10**9, schedule=cosine, seed=seed,
        train_mode=lambda: nothing(model.train()), evaluate=None, save=nothing, wants_retry=lambda: False, stop=lambda: False,
        beat=nothing, at=heart.at,
        listener=Silent(), log_every=LOG_EVERY, evaluate_every=clock, checkpoint_every=clock, evaluate_at_start=False,
        lower_is_better=True, best_metric="val/loss", patience=None, min_delta=0.0, clip=CLIP, max_skipped=10,
    )  # fmt: skip
    began = time.perf_counter()
    assert train(job, Progress())
    return time.perf_counter() - began, model


def quartiles(values: list[float]) -> str:
    ordered = sorted(values)
    return f"median {median(ordered):.1f} us, quartiles {ordered[len(ordered) // 4]:.1f} to {ordered[-len(ordered) // 4]:.1f}"


def main() -> int:
    runtime = Runtime(Parallel(device="cpu", threads=1), Train(), planned=None, uncompiled=None)
    batches = data()
    folder = tempfile.TemporaryDirectory()
    heart = Heartbeat(Path(folder.name), 0)
    first, second = bare(batches)[1], graft(batches, runtime, heart)[1]
    for one, other in zip(first.parameters(), second.parameters(), strict=True):
        if not torch.equal(one, other):
            raise SystemExit("the two loops do not give the same weights: the comparison would mean nothing")
    a: Callable[[], float] = lambda: bare(batches)[0]  # noqa: E731
    b: Callable[[], float] = lambda: graft(batches, runtime, heart)[0]  # noqa: E731
    difference, control, plain = [], [], []
    for _ in range(PAIRS):
        a1, b1, b2, a2 = a(), b(), b(), a()
        difference += [(b1 - a1) / STEPS * 1e6, (b2 - a2) / STEPS * 1e6]
        control.append((a2 - a1) / STEPS * 1e6)
        plain += [a1 / STEPS * 1e6, a2 / STEPS * 1e6]
    what = f"{STEPS} steps, MLP {FEATURES}-128-{CLASSES}, batch {BATCH}, AdamW, clipping, 1 thread"
    print(f"bare loop: {quartiles(plain)} a step ({what})")
    print(f"graft over bare: {quartiles(difference)} a step (goal at most 60), equal final weights")
    print(f"bare over bare (control): {quartiles(control)}")
    heart.close()
    folder.cleanup()
    runtime.close()
    return 0


if __name__ == "__main__":
    sys.exit(main())
