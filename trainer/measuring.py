"""Measures a restored network on one device, over any source."""

from __future__ import annotations

from collections.abc import Iterable
from contextlib import AbstractContextManager, nullcontext
from dataclasses import replace
from typing import Any

import torch
from torch import nn

from trainer.config import Run, UserError
from trainer.config.sources import Listing, open_source, open_splits
from trainer.data import Batch
from trainer.data.buckets import sort
from trainer.data.dataset import BadCount
from trainer.data.loader import Samples, eval_batches
from trainer.data.pairs import dataset_of, loaded
from trainer.evaluate import measured, refer
from trainer.judges import give
from trainer.restored import Restored
from trainer.runtime.computing import TYPES
from trainer.spec import InputSpec
from trainer.tasks.base import Evaluation, Finishing, Generates, Task

BATCH = 64


def listing_of(restored: Restored, source: str | None) -> Listing:
    """The samples of a source with the targets of the run, or the run's own validation samples."""
    looks_at = restored.run.task.looks_at
    targets = [known.target for known in restored.facts.targets] if looks_at == "targets" else None
    if targets is not None and source is not None and isinstance(restored.task, Generates):  # also classes of its prior
        targets = [replace(target, labels=restored.task.generator.classes) for target in targets]
    if source is not None:
        return _numbered(restored, open_source(source, targets, looks_at=looks_at))
    val = restored.run.data.val
    if val is None:
        raise UserError(f"{restored.run.name} has no validation data; name a source, such as folder:PATH")
    if val.startswith(("split:", "fold:")):
        held = open_splits(restored.run.data, restored.run.train.seed, looks_at=looks_at).val
        assert held is not None
        return held
    return _numbered(restored, open_source(val, targets, looks_at=looks_at))


def _numbered(restored: Restored, listing: Listing) -> Listing:
    """Captions have the numbers that the task knows them by."""
    task = restored.task
    if restored.run.task.looks_at != "captions" or not isinstance(task, Generates):
        return listing
    numbers = [task.caption(text) for text in listing.classes]
    return replace(listing, items=tuple(replace(item, label=numbers[item.label]) for item in listing.items))


def measure(restored: Restored, source: str | None, device: torch.device) -> tuple[Evaluation, int]:
    """The figures over exactly the readable samples of a source, and how many were not readable."""
    run, listing = restored.run, listing_of(restored, source)
    return figures(run, restored.task, listing, restored.network, restored.spec, device)


def figures(
    run: Run, task: Task, listing: Listing, network: nn.Module, spec: InputSpec, device: torch.device
) -> tuple[Evaluation, int]:  # fmt: skip
    """The figures of a network for a task over exactly the readable samples of a listing, and how many were not readable."""
    dataset = square = dataset_of(run, listing, spec, train=False)
    if run.data.buckets is not None:
        dataset = dataset_of(run, listing, spec, train=False, buckets=sort(run, listing, spec.image_size))
    bad = BadCount(run.data.max_bad)
    unreadable: set[str] = set()

    def prepare(batch: Batch) -> Batch:
        bad.add(batch.bad)
        unreadable.update(path for path, _ in batch.bad)
        return batch.to(device, loaded(run, spec))

    network = network.to(device)
    give(run, task, device)

    def read(images: Samples) -> Iterable[Batch]:
        return eval_batches(images, batch=BATCH, rank=0, world=1, workers=run.data.workers, pin=device.type == "cuda")

    with precision(run.train.precision, device):
        result = task.measure(len(dataset), device)
        refer(result, lambda name: square, read, prepare)
        measured(network, result, read(dataset), prepare)
        if isinstance(result, Finishing):
            result.finish(network, 0, 1, lambda stage: None)
    return result.result(), len(unreadable)


def precision(name: str, device: torch.device) -> AbstractContextManager[Any]:
    """The mixed precision that the run was evaluated in while it trained; fp16 only where a GPU is."""
    if name not in TYPES or (name == "fp16" and device.type != "cuda"):
        return nullcontext()
    return torch.autocast(device.type, dtype=TYPES[name])
