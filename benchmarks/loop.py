"""A tiny network in graft's loop, Accelerate, the Trainer and Lightning over a bare loop: `python -m benchmarks.loop`.

3,000 steps with the same network, weights, batches, dropout, clipping, schedule and record; every loss of every contestant is
equal to the bare loop's. A step is timed inside the loss: from the first call after a warm-up to the last.
"""

from __future__ import annotations

import itertools
import math
import sys
import tempfile
import time
from collections.abc import Callable, Generator, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import nn
from torch.nn import functional

from benchmarks import paired, peers, results
from trainer.config.amounts import parse_amount
from trainer.config.run import Parallel, Train
from trainer.data import Batch
from trainer.data.order import mix
from trainer.loop import At, Job, train
from trainer.progress import Clock, Progress
from trainer.runtime import Runtime
from trainer.session import Silent
from trainer.spec import ParamGroup
from trainer.tasks.base import Phase
from trainer.watch import Heartbeat

BATCH, FEATURES, CLASSES, LR, CLIP, LOG_EVERY, WARM = 32, 64, 10, 1e-3, 1.0, 10, 20


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


class Work:
    """What every loop is given: the batches, the schedule, and the loss, which notes when it was called and what it was."""

    def __init__(self, steps: int) -> None:
        self.steps = steps
        self.batches = data()
        self.begin()

    def begin(self) -> None:
        self.marks: list[float] = []
        self.losses: list[torch.Tensor] = []

    def cosine(self, samples: int) -> float:
        return (1 + math.cos(math.pi * samples / (self.steps * BATCH))) / 2

    def loss(self, model: nn.Module, images: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
        """Of each sample."""
        step = len(self.marks)
        self.marks.append(time.perf_counter())
        torch.default_generator.manual_seed(mix(0, step, 0, 0))
        each = functional.cross_entropy(model(images), labels, reduction="none")
        self.losses.append(each.detach())
        return each

    def seconds(self) -> float:
        """Of a step."""
        assert len(self.marks) == self.steps, f"{len(self.marks)} steps instead of {self.steps}"
        return (self.marks[-1] - self.marks[WARM]) / (self.steps - 1 - WARM)


def bare(work: Work) -> None:
    """A loop as a careful person writes it."""
    model = network()
    optimizer = torch.optim.AdamW(model.parameters(), lr=LR)
    waiting: list[torch.Tensor] = []
    record: list[float] = []
    for step, batch in zip(range(work.steps), itertools.cycle(work.batches), strict=False):
        optimizer.param_groups[0]["lr"] = LR * work.cosine(step * BATCH)
        loss = work.loss(model, batch.images, batch.labels).sum() / BATCH
        loss.backward()  # type: ignore[no-untyped-call]
        torch.nn.utils.clip_grad_norm_(model.parameters(), CLIP)
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
        waiting.append(loss.detach())
        if (step + 1) % LOG_EVERY == 0:
            record.append(torch.stack(waiting).mean().item())
            waiting.clear()


def nothing(*_: Any) -> None:
    """In place of what the bare loop does not do either: saving and showing."""


def runtime(**settings: Any) -> Runtime:
    """One process on one thread of the CPU, or as the settings of `train` and `device` say."""
    device = settings.pop("device", "cpu")
    return Runtime(Parallel(device=device, threads=1), Train(**settings), planned=None, uncompiled=None)


def job(
    runtime: Runtime, phases: Sequence[Phase], batches: Generator[Sequence[Any], None, None], at: At, *, steps: int, batch: int,
    clip: float | None, schedule: Callable[[int], float] = lambda samples: 1.0,
    prepare: Callable[[Any], Batch] = lambda given: given,
) -> Job:  # fmt: skip
    """A job of graft's loop that neither saves nor evaluates."""
    clock = Clock(parse_amount("1 h", times=True), epoch_samples=10**9, step_samples=batch, now=time.monotonic())
    return Job(
        momentum=None, react=nothing, runtime=runtime, phases=phases, average=None, batches=batches, prepare=prepare, steps=steps,
        global_batch=batch, epoch_samples=10**9, schedule=schedule, seed=lambda step, rank, index: mix(0, step, rank, index),
        train_mode=lambda: nothing([phase.network.train() for phase in phases]), evaluate=None, save=nothing,
        wants_retry=lambda: False, stop=lambda: False, beat=nothing, at=at, listener=Silent(), log_every=LOG_EVERY,
        evaluate_every=clock, checkpoint_every=clock, evaluate_at_start=False, lower_is_better=True, best_metric="val/loss",
        patience=None, min_delta=0.0, clip=clip, max_skipped=10,
    )  # fmt: skip


def graft(work: Work, runtime: Runtime, heart: Heartbeat) -> None:
    """The same through graft's loop, with all its checks."""
    model = network()

    def loss(module: nn.Module, batch: Batch) -> torch.Tensor:
        return work.loss(module, batch.images, batch.labels)

    groups = [ParamGroup(list(model.named_parameters()))]
    engine = runtime.engine(model, model, groups, lambda given: torch.optim.AdamW(model.parameters(), lr=LR))
    batches = ([batch] for batch in itertools.cycle(work.batches))
    phases = [Phase("model", model, engine, loss)]
    assert train(
        job(runtime, phases, batches, heart.at, steps=work.steps, batch=BATCH, clip=CLIP, schedule=work.cosine), Progress()
    )


def main(argv: Sequence[str] | None = None) -> int:
    chosen = results.options("benchmarks.loop", __doc__, argv)
    peers.within("benchmarks.loop", "accelerate", "transformers", "lightning")
    from benchmarks import loop_peers

    work = Work(results.pick(chosen, 200, 3000, 3000))
    ours = runtime()
    with tempfile.TemporaryDirectory() as folder:
        heart = Heartbeat(Path(folder), 0)
        loops: dict[str, Callable[[], None]] = {
            "bare loop": lambda: bare(work), "graft": lambda: graft(work, ours, heart),
            **{name: lambda run=run: run(work) for name, run in loop_peers.LOOPS.items()},  # type: ignore[misc]
        }  # fmt: skip
        curves: dict[str, torch.Tensor] = {}

        def timed(name: str) -> float:
            work.begin()
            loops[name]()
            curve = torch.stack(work.losses)
            if not torch.equal(curves.setdefault("bare loop", curve), curve):
                raise SystemExit(f"{name} does not give the losses of the bare loop: the comparison would mean nothing")
            return work.seconds()

        measured = paired.measure({name: lambda name=name: timed(name) for name in loops}, results.pick(chosen, 1, 5, 20))  # type: ignore[misc]
        heart.close()
    ours.close()
    lines = [
        f"{work.steps:,} steps, MLP {FEATURES}-128-{CLASSES} with dropout, batch {BATCH}, AdamW, clipping, cosine, the mean loss "
        f"every {LOG_EVERY} steps, 1 thread. All {work.steps * BATCH:,} losses of each equal the bare loop's to the bit.",
        "",
        *paired.table(measured, "us a step", scale=1e6, difference=True),
    ]
    command = results.command("benchmarks.loop", chosen)
    goal = "at most 30 us over bare"
    return results.finish([results.Section("1", "A tiny network", lines, goal, command, {"seconds": measured.times})], chosen)


if __name__ == "__main__":
    sys.exit(main())
