"""Evaluation over exactly the samples there are, on any number of ranks."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager, nullcontext
from typing import Any

import torch
from torch import nn

from trainer.optim import Average, FreeAverage
from trainer.runtime import Runtime
from trainer.tasks.base import Batch, Evaluation, Finishing, Measure
from trainer.tasks.making import MakingMeasure


@torch.no_grad()
def measured(network: nn.Module, measure: Measure, batches: Iterable[Any], prepare: Callable[[Any], Batch]) -> Measure:
    """Update a measure with every batch, the network in eval mode; for one of what is made alone none is read."""
    network.eval()
    if isinstance(measure, MakingMeasure):
        return measure
    for raw in batches:
        batch = prepare(raw)
        if len(batch.labels):  # every file of a batch may have been unreadable
            measure.update(network, batch)
    return measure


@contextmanager
def lockstep(runtime: Runtime, network: nn.Module, idle: Callable[[nn.Module], None]) -> Iterator[None]:
    """Where the ranks meet in every forward pass: around passes of which each rank makes as many as it likes. Those that are
    done make idle ones, whose figures are thrown away, until all are."""
    idles = False

    def goes_on(*_: Any) -> None:
        if not idles:
            runtime.sum_host(torch.ones(1))

    hook = network.register_forward_pre_hook(goes_on, prepend=True)
    try:
        yield
        idles = True
        with torch.no_grad():
            while runtime.sum_host(torch.zeros(1)).item():
                idle(network)
    finally:
        hook.remove()


def refer(
    measure: Measure, data: Callable[[str], Any], load: Callable[[Any], Iterable[Any]], prepare: Callable[[Any], Batch],
    at: Callable[[str], None] = lambda stage: None,
) -> None:  # fmt: skip
    """Show a measure the images of the data that it compares with, where it wants any; `data` gives `train` and `val`."""
    wanted = measure.wants() if isinstance(measure, Finishing) else None
    if isinstance(measure, Finishing) and wanted is not None:
        images = data(wanted)
        prepared = (prepare(raw) for raw in _told(load(images), at))
        measure.refer((batch for batch in prepared if len(batch.labels)), len(images))


def evaluate(
    runtime: Runtime,
    network: nn.Module,
    measure: Measure,
    batches: Iterable[Any],
    prepare: Callable[[Any], Batch],
    average: Average | FreeAverage | None = None,
    at: Callable[[str], None] = lambda stage: None,
    idle: Callable[[nn.Module], None] | None = None,
) -> Evaluation:
    """Measure a network, or its averaged weights; each rank sees its own samples and the counts are summed.

    Leaves the network in eval mode and touches no random state. `at` hears of every batch, so that a long evaluation is seen to
    go on. `idle`: an idle pass, where the ranks meet in every one.
    """
    if average is not None:
        average.swap()
        runtime.share_buffers(network)  # those of the average: each rank's own copy followed its own samples
    try:
        runtime.share_buffers(network)
        with runtime.autocast(), nullcontext() if idle is None else lockstep(runtime, network, idle):
            measured(network, measure, _told(batches, at), prepare)
            if isinstance(measure, Finishing):
                measure.finish(network, runtime.rank, runtime.world, at)
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
