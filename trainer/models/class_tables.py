"""The tables of class embeddings of a conditional generator, given other classes by the rule of a head's rows."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Literal

import torch
from torch import nn

from trainer.config import UserError
from trainer.config.adapt import Adapt
from trainer.models.base import Checkpoint, LoadReport
from trainer.models.place import Place
from trainer.models.rows import Rows, rows

_TABLES = ("class_embedding", "class_embedder.embedding_table", "class_embeddings")


def class_tables(network: nn.Module) -> tuple[str, ...]:
    """The tables of class embeddings [classes, width], by dotted name.

    `class_embedding` of a UNet, the table in every block of a DiT (Peebles and Xie 2023).
    """
    named = network.named_modules()
    return tuple(name for name, module in named if isinstance(module, nn.Embedding) and name.endswith(_TABLES))


def class_names(source: str) -> tuple[str, ...] | None:
    """The class names that a pipeline (`FOLDER` or `owner/name`, with or without `#PART`) gives as `id2label`; none without.

    Of several names of a class, separated by commas, it is the first. Raises UserError for an `id2label` that is none.
    """
    place = Place.of(source.partition("#")[0])
    found = (place.json("model_index.json") or {}).get("id2label")
    if not found:
        return None
    try:
        by_number = {int(key): str(value).partition(",")[0].strip() for key, value in found.items()}
    except (AttributeError, ValueError):
        raise UserError(f"{place.name}: id2label in model_index.json does not give a name for each number of a class") from None
    if sorted(by_number) != list(range(len(by_number))):
        raise UserError(f"{place.name}: id2label in model_index.json has {len(by_number)} classes that are not numbered from 0")
    return tuple(by_number[index] for index in range(len(by_number)))


def adapt_classes(
    network: nn.Module,
    old: Sequence[str] | None,
    classes: Sequence[str],
    adapt: Adapt,
    seed: int,
    *,
    null: Literal["first", "last"] = "last",
) -> LoadReport:
    """Give every table of class embeddings of a generator the task's classes, in their order; its configuration too.

    `old`: the names of its classes; none: not known. `adapt.head`, `rename`, `like` and `new_rows` mean what they mean for a
    head: rows of shared classes are kept; new ones are drawn from `seed`, with the deviation of the old ones, or zero, or their
    mean. A row more than there are names stands for no class at all (classifier-free guidance, Ho and Salimans 2022): it is kept
    at its end of the table, which `null` tells; a DiT has it last.

    Raises UserError, before anything is changed, for a network without such tables, names that do not fit them, and for what
    `adapt` asks of names that there are not.
    """
    kind = type(network).__name__
    names = class_tables(network)
    if not names:
        raise UserError(f"the generator, a {kind}, has no table of class embeddings, so it cannot be told classes")
    twice = next((name for name in classes if list(classes).count(name) > 1), None)
    if twice is not None or not classes:
        raise UserError(f"the task has the class '{twice}' twice" if twice is not None else "the task has no classes")
    tables: dict[str, Any] = {name: network.get_submodule(name) for name in names}
    sizes = {len(table.weight) for table in tables.values()}
    embedders: list[Any] = [network.get_submodule(name.rpartition(".")[0]) for name in names if "." in name]
    counted = {int(e.num_classes) for e in embedders if isinstance(getattr(e, "num_classes", None), int)}
    if len(sizes) != 1 or len(counted) > 1:
        raise UserError(f"the generator's tables of class embeddings have {sorted(sizes)} rows; they must agree")
    size = sizes.pop()
    before = len(old) if old is not None else counted.pop() if counted else size
    extra = size - before
    if extra not in (0, 1) or (counted and before not in counted):
        raise UserError(
            f"the generator has {size} rows of class embeddings and {before} class names; there may be one row more, for no class"
        )
    if embedders and extra and null == "first" and any(hasattr(e, "dropout_prob") for e in embedders):
        raise UserError(f"null is 'first', and a {kind} has its row for no class last; write last")
    settings = adapt.of("")
    checkpoint = Checkpoint(f"the {kind}", {}, tuple(old) if old is not None else None)
    kept = rows(checkpoint, {before}, settings, tuple(classes))
    if not kept.picks:
        kept = Rows((None,) * len(classes))
    report = LoadReport(f"the {kind}'s class embeddings")
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for name, table in tables.items():
            _replace(table, kept, settings.new_rows or "random", extra, null, generator)
            if kept.picks == tuple(range(before)):
                report.matched.append(f"{name}.weight")
            elif all(pick is None for pick in kept.picks):
                report.fresh.append(f"{name}.weight")
            else:
                report.adapted.append(f"{name}.weight: {kept.told}")
    _tell(network, embedders, before, len(classes), extra)
    return report


def _replace(table: Any, kept: Rows, new_rows: str, extra: int, null: str, generator: torch.Generator) -> None:
    """Put the new rows into a table of embeddings, in place."""
    weight = table.weight
    nulls, value = (
        (weight[:extra], weight[extra:]) if null == "first" else (weight[len(weight) - extra :], weight[: len(weight) - extra])
    )
    spread = float(value.float().std()) if value.numel() > 1 else 1.0
    fresh = torch.randn(len(kept.picks), value.shape[1], generator=generator) * spread
    new = kept.of(value, fresh.to(weight), new_rows)
    parameter = nn.Parameter(torch.cat([nulls, new] if null == "first" else [new, nulls]), requires_grad=weight.requires_grad)
    table.weight, table.num_embeddings = parameter, len(parameter)


def _tell(network: Any, embedders: list[Any], before: int, now: int, extra: int) -> None:
    """The number of classes, wherever the network looks it up or saves it."""
    for embedder in embedders:
        if getattr(embedder, "num_classes", None) == before:
            embedder.num_classes = now
    for module in network.modules():
        if vars(module).get("num_embeds_ada_norm") == before:
            module.num_embeds_ada_norm = now
    saved = getattr(network, "config", {})
    changed = {key: value for key, value in (("num_class_embeds", now + extra), ("num_embeds_ada_norm", now)) if saved.get(key)}
    if changed:
        network.register_to_config(**changed)
