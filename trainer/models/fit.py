"""Fits the tensors of a checkpoint into a network: by name, with the adaptations that explain another shape."""

from __future__ import annotations

import torch
from torch import nn

from trainer.config import UserError
from trainer.config.adapt import Adapt
from trainer.models.adapt import inputs_of, positions_of
from trainer.models.base import Checkpoint, LoadReport, first_few
from trainer.models.probe import Anatomy
from trainer.models.rows import rows


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
    kept = rows(checkpoint, counts, adapt, classes)
    inputs = {f"{name}.weight" for name in anatomy.inputs}
    values: dict[str, torch.Tensor] = {}
    wrong: list[str] = []
    for name, target in own.items():
        if name not in given or (name in heads and not kept.picks):
            if not name.endswith("num_batches_tracked"):  # older files do not count batches; only a momentum of None uses it
                report.fresh.append(name)
            continue
        value, how = given[name], None
        if name in heads and value.shape[1:] == target.shape[1:]:
            value, how = kept.of(value, target, adapt.new_rows), kept.told
        elif name in inputs and (fitted := inputs_of(value, target.shape, adapt)) is not None:
            value, how = fitted
        elif value.shape == target.shape:
            pass
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
