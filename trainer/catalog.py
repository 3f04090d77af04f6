"""`graft models`: what can be grafted onto, listed by name or described one by one."""

from __future__ import annotations

import fnmatch
import json
from collections.abc import Iterator
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import nn

from trainer.config import EXIT_DONE, UserError, nearest
from trainer.config.run import Model
from trainer.models.base import Origin
from trainer.models.build import origin_of
from trainer.models.probe import examine

SOURCES = ("torchvision", "timm", "run")
_SHOWN = 200  # rows for a person; --json gives all


@dataclass(frozen=True)
class Entry:
    """A source by name; none: not known without building. `size` in pixels, `weights` as `model.weights` takes them."""

    name: str
    parameters: int | None = None
    size: int | None = None
    classes: int | None = None
    weights: tuple[str, ...] = ()


@dataclass(frozen=True)
class Block:
    """A part of a network, by dotted name, in the order of its definition."""

    name: str
    kind: str
    parameters: int


@dataclass(frozen=True)
class Description(Entry):
    """A network, built for shapes alone. `inputs` and `head`: dotted names of the layers that are adapted."""

    channels: int | None = None
    mean: tuple[float, ...] | None = None
    std: tuple[float, ...] | None = None
    interpolation: str | None = None
    inputs: tuple[str, ...] = ()
    head: tuple[str, ...] = ()
    width: int | None = None
    blocks: tuple[Block, ...] = field(default=())


def entries(source: str | None, runs: Path) -> Iterator[Entry]:
    """Everything that has a name here: architectures of the libraries, and the runs below a folder."""
    if source in (None, "torchvision"):
        yield from _torchvision()
    if source in (None, "timm"):
        yield from _timm()
    if source in (None, "run"):
        yield from _runs(runs)


def _torchvision() -> Iterator[Entry]:
    from torchvision import models

    for name in models.list_models(module=models):
        members = list(models.get_model_weights(name))
        first = members[-1] if members else None
        names = first.meta["categories"] if first else None
        yield Entry(
            f"torchvision:{name}", first.meta["num_params"] if first else None,
            first.transforms().crop_size[0] if first else None, len(names) if names else None,
            tuple(member.name for member in members),
        )  # fmt: skip


def _timm() -> Iterator[Entry]:
    from timm.models import get_pretrained_cfg, list_models, list_pretrained

    tags: dict[str, list[str]] = {}
    for found in list_pretrained():
        name, _, tag = found.partition(".")
        tags.setdefault(name, []).append(tag)
    for name in list_models():
        facts: Any = get_pretrained_cfg(name)
        size, classes = (max(facts.input_size[1:]), facts.num_classes) if facts is not None else (None, None)
        yield Entry(f"timm:{name}", None, size, classes, tuple(tags.get(name, ())))


def _runs(runs: Path) -> Iterator[Entry]:
    from trainer.checkpoint import Store

    for file in sorted(runs.glob("*/run.yaml")):
        store = Store(file.parent / "checkpoints", keep=1)
        steps = store.steps()
        state: dict[str, Any] = {}
        if steps:
            try:
                state = json.loads((steps[max(steps)] / "state.json").read_text(encoding="utf-8"))
            except (OSError, ValueError):
                continue
        yield Entry(
            f"run:{file.parent.name}", None, state.get("spec", {}).get("image_size"),
            len(state["classes"]) if "classes" in state else None, tuple(["best", "last", *map(str, steps)] if steps else ()),
        )  # fmt: skip


def chosen(pattern: str, known: list[Entry]) -> list[Entry]:
    """Those that a pattern means: a name (with its scheme or without), a pattern with * and ?, or a part of the name."""
    if not any(mark in pattern for mark in "*?["):
        same = [entry for entry in known if pattern in (entry.name, entry.name.partition(":")[2])]
        return same or [entry for entry in known if pattern.lower() in entry.name.lower()]
    return [e for e in known if any(fnmatch.fnmatchcase(name, pattern) for name in (e.name, e.name.partition(":")[2]))]


def describe(name: str, entry: Entry | None, runs: Path) -> Description:
    """Build a source for shapes alone and say what it is made of. Raises UserError."""
    if name.startswith("run:") and (runs / name.removeprefix("run:") / "run.yaml").is_file():
        settings = Model(source=f"run:{(runs / name.removeprefix('run:')).resolve()}")
    elif entry is not None and not name.startswith("run:"):
        settings = Model(source=name, weights="DEFAULT" if entry.weights else "none")
    else:
        settings = Model(source=name)
    source = origin_of(settings)
    size = source.image_size or 224
    classes = (entry.classes if entry is not None else None) or 1000
    network = _made(source, classes, size)
    anatomy = examine(network, source.name, source.channels, size, None)
    parameters = sum(parameter.numel() for parameter in network.parameters())
    return Description(
        name, parameters, size, anatomy.classes if not source.sized or entry is not None else None,
        entry.weights if entry is not None else (settings.weights,), anatomy.channels, source.mean, source.std,
        source.interpolation, anatomy.inputs, anatomy.head,
        _features(network.get_submodule(anatomy.head[0])), tuple(_blocks(network)),
    )  # fmt: skip


def _made(source: Origin, classes: int, size: int) -> nn.Module:
    """On the meta device where that can be (shapes alone), else for real."""
    try:
        with torch.device("meta"):
            return source.make(classes, size)
    except UserError:
        raise
    except Exception:  # a constructor that computes with values
        return source.make(classes, size)


def _features(layer: nn.Module) -> int | None:
    """How many features the output layer takes."""
    return layer.in_features if isinstance(layer, nn.Linear) else getattr(layer, "in_channels", None)


def _blocks(network: nn.Module) -> Iterator[Block]:
    """The children of the network; those that are lists or sequences of blocks by their own children."""
    for name, child in network.named_children():
        several = isinstance(child, nn.ModuleList | nn.Sequential) and len(child) > 1
        for inner, part in child.named_children() if several else [("", child)]:
            count = sum(parameter.numel() for parameter in part.parameters())
            if count:
                yield Block(f"{name}.{inner}" if inner else name, type(part).__name__, count)


def show(pattern: str | None, source: str | None, runs: Path, *, as_json: bool) -> int:
    """Print the list, or the description of what one name means. Raises UserError where nothing matches."""
    named = pattern is not None and pattern.partition(":")[0] in ("transformers", "diffusers", "python")
    path = pattern is not None and ":" in pattern and "/" in pattern
    known = [] if named or path else list(entries(source, runs))
    found = [Entry(pattern)] if pattern is not None and (named or path) else known if pattern is None else chosen(pattern, known)
    if not found:
        assert pattern is not None or source == "run"
        if pattern is None:
            raise UserError(f"no runs in {runs}")
        raise UserError(f"no model matches '{pattern}'{nearest(pattern, [e.name.partition(':')[2] for e in known])}")
    if pattern is not None and len(found) == 1:
        described = describe(found[0].name, None if named or path else found[0], runs)
        print(json.dumps(asdict(described), indent=1) if as_json else _text(described))
    elif as_json:
        print(json.dumps([asdict(entry) for entry in found], indent=1))
    else:
        _table(found)
    return EXIT_DONE


def _table(found: list[Entry]) -> None:
    from rich import box
    from rich.console import Console
    from rich.table import Column, Table

    table = Table(Column("source", no_wrap=True), "parameters", "size", "classes", "weights", box=box.SIMPLE, pad_edge=False)
    for entry in found[:_SHOWN]:
        count = f"{entry.parameters / 1e6:.1f} M" if entry.parameters is not None else ""
        told = ", ".join(entry.weights[:3]) + (f" and {len(entry.weights) - 3} more" if len(entry.weights) > 3 else "")
        table.add_row(entry.name, count, str(entry.size or ""), str(entry.classes or ""), told)
    out = Console(highlight=False)
    out.print(table)
    if len(found) > _SHOWN:
        out.print(f"{_SHOWN} of {len(found):,}; give a pattern, or --json for all", markup=False)


def _text(one: Description) -> str:
    mean, std = (", ".join(f"{value:g}" for value in values) if values else None for values in (one.mean, one.std))
    rows = [
        ("source", one.name), ("parameters", f"{one.parameters:,}"),
        ("input", f"{one.channels} x {one.size} x {one.size}, by {', '.join(one.inputs) or 'no convolution'}"),
        ("normalisation", f"mean {mean}, std {std}" if mean else "not known"),
        ("interpolation", one.interpolation or "not known"),
        ("classes", f"{one.classes:,}" if one.classes else "as many as the task has"),
        ("head", f"{', '.join(one.head)}" + (f", of {one.width:,} features" if one.width else "")),
        ("weights", ", ".join(one.weights) or "none published"),
    ]  # fmt: skip
    lines = [f"{label:<14} {text}" for label, text in rows]
    return "\n".join([*lines, "blocks", *(f"  {b.name:<28} {b.kind:<24} {b.parameters:>13,}" for b in one.blocks)])
