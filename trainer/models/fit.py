"""Fits the tensors of a checkpoint into a network: by name, with the adaptations that explain another shape."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

import torch
from torch import nn

from trainer.config import UserError, nearest
from trainer.config.adapt import Adapt
from trainer.config.heads import OneHead
from trainer.models.adapt import inputs_of
from trainer.models.base import Checkpoint, LoadReport, first_few
from trainer.models.heads import Attention, Heads, Mlp
from trainer.models.outputs import alone, module_name
from trainer.models.positions import positions_of
from trainer.models.probe import Anatomy
from trainer.models.rows import Rows, rows
from trainer.spec import Output

Tensors = Mapping[str, torch.Tensor]


def fit(network: nn.Module, checkpoint: Checkpoint, anatomy: Anatomy, adapt: Adapt, outputs: Sequence[Output]) -> LoadReport:
    """Copy what fits into the network and say what became of each tensor; raises UserError before anything is changed.

    A tensor of another shape is adapted when it is the head, the filters of the first layer or a table of positions; any other
    is refused. So is a checkpoint that holds fewer than half of the trunk's tensors.
    """
    report = LoadReport(checkpoint.source)
    own = {name: value for name, value in network.state_dict().items() if isinstance(value, torch.Tensor)}
    given = {k: v for k, v in checkpoint.tensors.items() if not k.startswith(checkpoint.untrained or ("\0",))}
    heads = {name: head for head in _heads(network, checkpoint, anatomy, adapt, outputs, given) for name in head.tensors}
    inputs = {f"{name}.weight" for name in anatomy.inputs}
    buffers = {name for name, _ in network.named_buffers()}
    values: dict[str, torch.Tensor] = {}
    wrong: list[str] = []
    used: set[str] = set()
    for name, target in own.items():
        head = heads.get(name)
        source = head.tensors[name] if head is not None else name
        if source not in given or (head is not None and not head.kept.picks):
            if not name.endswith("num_batches_tracked"):  # older files do not count batches; only a momentum of None uses it
                report.fresh.append(name)
            continue
        used.add(source)
        value, how = given[source], None
        if head is not None and name in head.rows and value.shape[1:] == target.shape[1:]:
            value, how = head.kept.of(value, target, head.settings.new_rows or "random"), head.kept.told
        elif name in inputs and (fitted := inputs_of(value, target.shape, adapt)) is not None:
            value, how = fitted
        elif value.shape == target.shape:
            pass
        elif (resampled := positions_of(name, value, target.shape, anatomy.grids, checkpoint.grid)) is not None:
            value, how = resampled
        elif name in buffers and not target.is_floating_point():
            report.adapted.append(f"{name}: not read, it follows from the size")
            continue
        else:
            wrong.append(f"{name} {list(value.shape)} in the file, {list(target.shape)} in the network")
            continue
        values[name] = value
        (report.adapted if how else report.matched).append(f"{name}: {how}" if how else name)
    report.left_over = [name for name in checkpoint.tensors if name not in own and name not in used]
    if wrong:
        raise UserError(f"{checkpoint.source}: a checkpoint of another shape: {first_few(wrong, 3)}")
    _enough(report, own, set(heads), checkpoint)
    with torch.no_grad():
        for name, value in values.items():
            own[name].copy_(value)
    return report


@dataclass(frozen=True)
class _Head:
    """A head of the network and where the checkpoint has it.

    `tensors`: the names that its tensors have there, by those that they have here; `rows`: those with a row for each label;
    `kept`: which of these it takes.
    """

    tensors: dict[str, str]
    rows: set[str]
    settings: OneHead
    kept: Rows


def _heads(
    network: nn.Module, checkpoint: Checkpoint, anatomy: Anatomy, adapt: Adapt, outputs: Sequence[Output], given: Tensors
) -> list[_Head]:
    """The heads and the rows that they keep. Raises UserError for what the run file asks of them and cannot be."""
    found: list[_Head] = []
    several = {output.name: output.labels for output in checkpoint.outputs}
    for output in outputs:
        settings = adapt.of(output.name)
        where = f"model.adapt.heads.{output.name}" if output.name else "model.adapt"
        old = _old(checkpoint, settings, output, several, where)
        names: dict[str, str] = {}
        last: set[str] = set()
        for site in anatomy.head:
            module = network.get_submodule(site)
            inside = "" if alone(outputs) or not isinstance(module, Heads) else f".{module_name(output.name)}"
            head = network.get_submodule(site + inside)
            beyond = f".{module_name(old)}" if old else ""
            for name in head.state_dict():
                names[f"{site}{inside}.{name}"] = f"{site}{beyond}.{name}"
            out = "out." if isinstance(head, Mlp | Attention) else ""
            last |= {f"{site}{inside}.{out}{part}" for part in ("weight", "bias")}
        if old is None:
            found.append(_Head(names, last, settings, Rows()))
            continue
        mine = replace(checkpoint, classes=several.get(old, checkpoint.classes))
        state = network.state_dict()
        layers = [name for name in names if name not in last]
        made_alike = all(names[n] in given and given[names[n]].shape == state[n].shape for n in layers)
        counts = {given[names[n]].shape[0] for n in last & names.keys() if names[n] in given and given[names[n]].dim()}
        if layers and not made_alike:
            counts = set()
        kept = rows(mine, counts, settings, output.labels, where, lone=len(outputs) == 1)
        found.append(_Head(names, last & names.keys(), settings, kept))
    return found


def _old(
    checkpoint: Checkpoint, settings: OneHead, output: Output, several: Mapping[str, tuple[str, ...]], where: str
) -> str | None:
    """The head of the checkpoint that a head takes its rows of: empty for its only one, none where it has none for it."""
    wanted = settings.take or output.name
    if not several:
        if settings.take:
            raise UserError(f"{where}.take: {checkpoint.source} has one head without a name; leave it out")
        return ""
    if wanted in several:
        return wanted
    if settings.take or settings.like or settings.rename or settings.head in ("keep", "shared"):
        key, asked = (
            ("take", "") if settings.take else ("head", ", whose rows are asked for; write take: and the head to take them of")
        )
        near = nearest(wanted, several) or f"; it has {', '.join(several)}"
        raise UserError(f"{where}.{key}: {checkpoint.source} has no head '{wanted}'{near}{asked}")
    return None


def _enough(report: LoadReport, own: Tensors, heads: set[str], checkpoint: Checkpoint) -> None:
    needed = {n for n in own if not n.endswith("num_batches_tracked")}
    needed = needed - heads or needed
    lacking = needed & set(report.fresh)
    if 2 * len(lacking) > len(needed) or len(lacking) == len(needed):
        raise UserError(
            f"{checkpoint.source}: {len(needed) - len(lacking)} of the network's {len(needed)} tensors are in it, so it is the "
            f"checkpoint of another network; the network has {first_few(sorted(lacking), 3)}; "
            f"the file has {first_few(report.left_over, 3) or 'nothing else'}"
        )
