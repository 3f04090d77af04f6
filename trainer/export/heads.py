"""Heads of graft's own in the program of an export: their classes as they stand, and the lines that put them in."""

from __future__ import annotations

import copy
import inspect
import re
from dataclasses import dataclass

import torch
from torch import nn

from trainer.models.heads import GRAFTED, Attention, Heads, Mlp, Skipped
from trainer.models.probe import width


@dataclass(frozen=True)
class Added:
    """The places by dotted name, the classes that stand there, the lines that put them in, and those that let attention look."""

    names: tuple[str, ...]
    classes: tuple[type[nn.Module], ...]
    lines: list[str]
    connections: list[str]


def added(network: nn.Module) -> Added:
    """The heads of a network that its architecture does not have, and the places that they look past."""
    modules: dict[str, str] = {}
    for name, module in network.named_modules():
        if isinstance(module, (*GRAFTED, Skipped)) and not name.startswith(tuple(f"{outer}." for outer in modules) or "\0"):
            modules[name] = _code(module)
    inside = [m for name in modules for m in network.get_submodule(name).modules()]
    classes = tuple(kind for kind in (Heads, Mlp, Attention, Skipped) if any(type(m) is kind for m in inside))
    looking = [name for name, module in network.named_modules() if isinstance(module, Attention) and module.pool]
    lines = [line(name, code) for name, code in modules.items()]
    return Added(tuple(modules), classes, lines, [f"network.get_submodule({name!r}).connect(network)" for name in looking])


def sources(heads: Added) -> list[str]:
    """The classes as Python, without remarks for tools."""
    return [re.sub(r"  # (type: ignore|noqa|fmt:)[^\n]*", "", inspect.getsource(kind)) for kind in heads.classes]


def line(name: str, fresh: str) -> str:
    """The line that puts a new module in a place."""
    parent, _, child = name.rpartition(".")
    if not parent and child.isidentifier():
        return f"network.{child} = {fresh}"
    return f"setattr(network.get_submodule({parent!r}), {child!r}, {fresh})"


def _code(module: nn.Module) -> str:
    """The expression that makes a module."""
    if isinstance(module, Heads):
        parts = ", ".join(f"{name!r}: {_code(head)}" for name, head in module.named_children())
        return f"Heads({{{parts}}}, {module.dim})"
    if isinstance(module, Mlp | Attention):
        return f"{type(module).__name__}({', '.join(f'{key}={value!r}' for key, value in module.arguments.items())})"
    return "Skipped()" if isinstance(module, Skipped) else plain_layer(module)


def merged(network: nn.Module) -> nn.Module:
    """The network with linear heads side by side made one layer, which is the same, and which every library has words for."""
    copied = copy.deepcopy(network)
    for name, module in list(copied.named_modules()):
        if isinstance(module, Heads) and all(type(head) in (nn.Linear, nn.Conv2d) for head in module.children()):
            first, *_ = heads = list(module.children())
            layer = copy.deepcopy(first)
            for part in ("weight", "bias"):
                values = [getattr(head, part) for head in heads]
                if values[0] is not None:
                    setattr(layer, part, nn.Parameter(torch.cat(values), requires_grad=False))
            count = "out_features" if isinstance(layer, nn.Linear) else "out_channels"
            setattr(layer, count, width(module))
            parent, _, child = name.rpartition(".")
            setattr(copied.get_submodule(parent), child, layer)
    return copied


def plain_layer(layer: nn.Module) -> str:
    """The expression that makes a layer of torch's."""
    parts: list[str] = []
    for parameter in list(inspect.signature(type(layer).__init__).parameters.values())[1:]:
        if parameter.name in ("device", "dtype"):
            continue
        value = layer.bias is not None if parameter.name == "bias" else getattr(layer, parameter.name)
        if parameter.default is inspect.Parameter.empty:
            parts.append(repr(value))
        elif value != parameter.default and value != (parameter.default,) * 2:
            parts.append(f"{parameter.name}={value!r}")
    return f"nn.{type(layer).__name__}({', '.join(parts)})"
