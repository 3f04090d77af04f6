"""Copies a checkpoint into a network that generates, adapted to other channels and classes."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Protocol

import torch
from torch import nn

from trainer.config import UserError
from trainer.config.adapt import Adapt
from trainer.models.adapt import inputs_beside
from trainer.models.base import Checkpoint, LoadReport, first_few
from trainer.models.channels import outputs_of
from trainer.models.class_tables import Table, table_rows

if TYPE_CHECKING:
    from trainer.models.generator import Parts, Shape


class Filled(Protocol):
    """What `fill` must know of a network and of its checkpoint: see `Denoiser`."""

    @property
    def channels(self) -> int | None: ...
    @property
    def table(self) -> Table | None: ...
    @property
    def spare(self) -> bool: ...
    @property
    def source(self) -> bool: ...
    @property
    def read(self) -> Callable[[], Checkpoint] | None: ...


def fill(
    network: nn.Module, source: Filled, parts: Parts, shape: Shape, adapt: Adapt, classes: tuple[str, ...], seed: int
) -> LoadReport:
    """Copy what fits into a generator and say what became of each tensor; raises UserError before anything is changed.

    A tensor of another shape is adapted where it takes or gives channels, or is a table of classes; any other is refused. So is a
    checkpoint that holds fewer than half of the network's tensors.
    """
    assert source.read is not None
    checkpoint = source.read()
    report = LoadReport(checkpoint.source)
    own = dict(network.state_dict())
    old = source.channels or adapt.in_channels
    inputs, tables = {f"{n}.weight" for n in parts.inputs}, {f"{n}.weight" for n in parts.tables}
    outputs = {f"{name}.{part}" for name in parts.outputs for part in ("weight", "bias")}
    counts = {checkpoint.tensors[name].shape[0] for name in tables if name in checkpoint.tensors}
    table = source.table or (Table(min(counts), checkpoint.classes, True if source.spare else None) if len(counts) == 1 else None)
    kept = table_rows(table if counts else None, classes, shape.rows > len(classes), adapt, checkpoint.source)
    report.classes = tuple(name for name, pick in zip(classes, kept.picks, strict=False) if pick is not None)
    values: dict[str, torch.Tensor] = {}
    wrong: list[str] = []
    draws = torch.Generator().manual_seed(seed)
    for name, target in own.items():
        value, how = checkpoint.tensors.get(name), None
        if value is None:
            report.fresh.append(name)
            if name in tables:
                values[name] = kept.begin(target, draws)
            continue
        if name in tables and value.shape[1:] == target.shape[1:]:
            value, how = kept.of(value, draws), kept.told
            if kept.fresh:
                values[name] = value
                report.fresh.append(name)
                continue
        elif name in inputs and (fitted := _taken(_turned(value, parts, 1), target, source, shape, adapt)) is not None:
            value, how = _turned(fitted[0], parts, 1, back=True), fitted[1]
        elif name in outputs and (given := outputs_of(_turned(value, parts, 0), target.shape, old, adapt)) is not None:
            value, how = _turned(given[0], parts, 0, back=True), given[1]
        elif value.shape != target.shape:
            wrong.append(f"{name} {list(value.shape)} in the file, {list(target.shape)} in the network")
            continue
        values[name] = value
        (report.adapted if how else report.matched).append(f"{name}: {how}" if how else name)
    report.left_over = [name for name in checkpoint.tensors if name not in own]
    if wrong:
        raise UserError(f"{checkpoint.source}: a checkpoint of another shape: {first_few(wrong, 3)}")
    if 2 * len(report.fresh) > len(own):
        raise UserError(
            f"{checkpoint.source}: {len(own) - len(report.fresh)} of the network's {len(own)} tensors are in it, so it is the "
            f"checkpoint of another network; the network has {first_few(report.fresh, 3)}; the file has "
            f"{first_few(report.left_over, 3) or 'nothing else'}"
        )
    with torch.no_grad():
        for name, value in values.items():
            own[name].copy_(value)
    return report


def _taken(
    value: torch.Tensor, target: torch.Tensor, source: Filled, shape: Shape, adapt: Adapt
) -> tuple[torch.Tensor, str | None] | None:  # fmt: skip
    """The weights of an input layer for the channels that it is to take, and what was done; none where they do not fit."""
    if source.channels is None and shape.source and value.shape == target.shape:
        return value, None  # a network of one's own that takes the source picture by itself
    return inputs_beside(value, target.shape, adapt, source.channels or shape.channels, had=source.source, wanted=shape.source)


def _turned(value: torch.Tensor, parts: Parts, dim: int, *, back: bool = False) -> torch.Tensor:
    """With the channel varying fastest in a dimension, where it varies slowest there; `back`: the other way round."""
    pixels = parts.packed**2
    if pixels == 1 or value.shape[dim] % pixels:
        return value
    sizes = (pixels, -1) if back else (-1, pixels)
    apart = value.reshape(*value.shape[:dim], *sizes, *value.shape[dim + 1 :])
    return apart.transpose(dim, dim + 1).flatten(dim, dim + 1).contiguous()
