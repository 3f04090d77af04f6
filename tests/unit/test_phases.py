"""A step of several phases: a gradient that is not finite leaves out the step of its own phase alone."""

from __future__ import annotations

import math
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import nn

from trainer.loop import Step
from trainer.progress import Progress
from trainer.tasks.base import Phase


@pytest.mark.parametrize(("norms", "averaged"), [((1.0, 1.0), 1), ((1.0, math.nan), 1), ((math.nan, 1.0), 0)])
def test_the_average_follows_each_step_of_the_first_network(norms: tuple[float, float], averaged: int) -> None:
    steps: list[str] = []
    phases = []
    for name, norm in zip(("model", "critic"), norms, strict=True):
        engine: Any = SimpleNamespace(
            rates=[({}, 1.0)], module=nn.Identity(), accumulating=lambda last: torch.enable_grad(), backward=lambda loss: None,
            norm=lambda norm=norm: norm, step=lambda norm, clip, name=name: steps.append(name), clear=lambda: None,
        )  # fmt: skip
        phases.append(Phase(name, nn.Identity(), engine, lambda module, batch: torch.zeros(4)))
    runtime = SimpleNamespace(
        world=1, rank=0, scaler=None, reseed=lambda seed: None, sum_host=lambda value: value, from_main=lambda value: value
    )
    updates: list[int] = []
    job: Any = SimpleNamespace(
        runtime=runtime, phases=phases, average=SimpleNamespace(update=updates.append), batches=iter([[None]]), momentum=None,
        prepare=lambda raw: raw, global_batch=4, epoch_samples=100, schedule=lambda samples: 1.0, seed=lambda *place: 0,
        clip=None, max_skipped=3, beat=lambda step: None, at=lambda *place: None,
        listener=SimpleNamespace(point=lambda *values: None),
    )  # fmt: skip
    progress = Progress()
    Step(job).step(progress)
    assert len(updates) == averaged
    assert steps == [name for name, norm in zip(("model", "critic"), norms, strict=True) if math.isfinite(norm)]
    assert progress.skipped == (0 if all(map(math.isfinite, norms)) else 1)
