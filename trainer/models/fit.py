"""Fits the tensors of a checkpoint into a network: by name, with the adaptations that explain another shape."""

from __future__ import annotations

import torch
from torch import nn

from trainer.config import UserError
from trainer.config.run import Adapt
from trainer.models.adapt import inputs_of, positions_of
from trainer.models.base import Checkpoint, LoadReport, first_few
from trainer.models.probe import Anatomy

Rows = list[int | None]


def fit(network: nn.Module, checkpoint: Checkpoint, anatomy: Anatomy, adapt: Adapt, classes: tuple[str, ...]) -> LoadReport:
    """Copy what fits into the network and say what became of each tensor; raises UserError before anything is changed.

    A tensor of another shape is adapted when it is the head, the filters of the first layer or a table of positions; any other
    is refused. So is a checkpoint that holds fewer than half of the trunk's tensors.
    """
    report = LoadReport(checkpoint.source)
    own = {name: value for name, value in network.state_dict().items() if isinstance(value, torch.Tensor)}
    heads = {f"{name}.{part}" for name in anatomy.head for part in ("weight", "bias")}
    given = {k: v for k, v in checkpoint.tensors.items() if not k.startswith(checkpoint.untrained or ("\0",))}
    counts = {given[name].shape[0] for name in heads & given.keys() if given[name].dim()}
    rows, told = _rows(checkpoint, counts, adapt.head, classes)
    inputs = {f"{name}.weight" for name in anatomy.inputs}
    values: dict[str, torch.Tensor] = {}
    wrong: list[str] = []
    for name, target in own.items():
        if name not in given or (name in heads and not rows):
            if not name.endswith("num_batches_tracked"):  # older files do not count batches; only a momentum of None uses it
                report.fresh.append(name)
            continue
        value, how = given[name], None
        if name in heads and value.shape[1:] == target.shape[1:]:
            value, how = _pick(value, target, rows), told
        elif value.shape == target.shape:
            pass
        elif name in inputs and (fitted := inputs_of(value, target.shape, adapt.in_channels)) is not None:
            value, how = fitted
        elif (resampled := positions_of(value, target.shape)) is not None:
            how = f"position embeddings resampled from {value.shape[1]} to {target.shape[1]}"
            value = resampled
        else:
            wrong.append(f"{name} {list(value.shape)} in the file, {list(target.shape)} in the network")
            continue
        values[name] = value
        (report.adapted if how else report.matched).append(f"{name}: {how}" if how else name)
    report.left_over = [name for name in checkpoint.tensors if name not in own]
    if wrong:
        raise UserError(f"{checkpoint.source}: a checkpoint of another shape: {first_few(wrong, 3)}")
    _enough(report, own, heads, checkpoint)
    with torch.no_grad():
        for name, value in values.items():
            own[name].copy_(value)
    return report


def _enough(report: LoadReport, own: dict[str, torch.Tensor], heads: set[str], checkpoint: Checkpoint) -> None:
    needed = {n for n in own if not n.endswith("num_batches_tracked")}
    needed = needed - heads or needed
    lacking = needed & set(report.fresh)
    if 2 * len(lacking) > len(needed) or len(lacking) == len(needed):
        raise UserError(
            f"{checkpoint.source}: {len(needed) - len(lacking)} of the network's {len(needed)} tensors are in it, so it is the "
            f"checkpoint of another network; the network has {first_few(sorted(lacking), 3)}; "
            f"the file has {first_few(report.left_over, 3) or 'nothing else'}"
        )


def _rows(checkpoint: Checkpoint, counts: set[int], policy: str, classes: tuple[str, ...]) -> tuple[Rows, str | None]:
    """For each class of the task the row of the checkpoint's head that it takes (None: a new one), and what that means.

    No rows at all: the head is new. Equal counts without known names are taken for equal classes, but not of official weights.
    """
    count = counts.pop() if len(counts) == 1 else None
    if policy == "new" or (count is None and policy == "auto"):
        return [], None
    if count is None:
        raise UserError(f"model.adapt.head: keep, but {checkpoint.source} holds no head for this network; write auto or new")
    names = checkpoint.classes if checkpoint.classes is not None and len(checkpoint.classes) == count else None
    straight: Rows = list(range(count))
    if names == classes:
        return straight, None
    unique = names is not None and len(set(names)) == count
    if names is not None and unique and set(names) == set(classes):
        return [names.index(c) for c in classes], "classes put into the order of the task"
    if policy == "keep":
        if count != len(classes):
            raise UserError(
                f"model.adapt.head: keep, but the head of {checkpoint.source} has {count} classes and the task has "
                f"{len(classes)}; write auto or new"
            )
        return straight, None
    if names is None:
        return (straight, None) if count == len(classes) and not checkpoint.official else ([], None)
    shared = set(names) & set(classes)
    if shared and unique and not checkpoint.official:
        return [names.index(c) if c in shared else None for c in classes], f"{len(shared)} of {len(classes)} classes kept"
    return [], None


def _pick(value: torch.Tensor, target: torch.Tensor, rows: Rows) -> torch.Tensor:
    picked = target.clone()
    for row, source in enumerate(rows):
        if source is not None:
            picked[row] = value[source]
    return picked
