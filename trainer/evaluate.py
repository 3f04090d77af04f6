"""Evaluation over exactly the samples there are, on any number of ranks."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn

from trainer.optim import Average, FreeAverage
from trainer.runtime import Runtime
from trainer.tasks.base import Batch, Evaluation, Measure


@dataclass(frozen=True)
class Lockstep:
    """Where the ranks meet in every forward pass: each makes `passes`, as the rank with most samples does; `idle(network)` is one
    whose figures are thrown away."""

    passes: int
    idle: Callable[[nn.Module], None]


@torch.no_grad()
def measured(
    network: nn.Module, measure: Measure, batches: Iterable[Any], prepare: Callable[[Any], Batch],
    lockstep: Lockstep | None = None,
) -> Measure:  # fmt: skip
    """Update a measure with every batch, the network in eval mode."""
    network.eval()
    passes = 0
    for raw in batches:
        batch = prepare(raw)
        if len(batch.labels):  # every file of a batch may have been unreadable
            measure.update(network, batch)
            passes += 1
    if lockstep is not None:
        for _ in range(lockstep.passes - passes):
            lockstep.idle(network)
    return measure


def evaluate(
    runtime: Runtime,
    network: nn.Module,
    measure: Measure,
    batches: Iterable[Any],
    prepare: Callable[[Any], Batch],
    average: Average | FreeAverage | None = None,
    at: Callable[[str], None] = lambda stage: None,
    lockstep: Lockstep | None = None,
) -> Evaluation:
    """Measure a network, or its averaged weights; each rank sees its own samples and the counts are summed.

    Leaves the network in eval mode and touches no random state. `at` hears of every batch, so that a long evaluation is seen to
    go on.
    """
    if average is not None:
        average.swap()
    try:
        runtime.share_buffers(network)
        with runtime.autocast():
            measured(network, measure, _told(batches, at), prepare, lockstep)
    finally:
        if average is not None:
            average.swap()
    at("gather")
    for tensor in measure.tensors():
        runtime.sum_host(tensor)
    return measure.result()


def _told(batches: Iterable[Any], at: Callable[[str], None]) -> Iterator[Any]:
    for batch in batches:
        at("evaluate")
        yield batch
