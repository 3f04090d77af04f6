"""Finds what a network pools before its head, so that a head can attend to it, and takes out what it does not need then."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import dataclass
from math import prod
from typing import Any

import torch
from torch import nn

from trainer.config import UserError, nearest
from trainer.models.base import first_few
from trainer.models.heads import GRAFTED, Attention, Skipped
from trainer.models.probe import send

_SMALL = 8  # weights of more than one dimension in a module that pools by attention of its own
_BETWEEN = 4  # such weights between the pooling and the head: VGG has two


@dataclass(frozen=True)
class Pool:
    """Where the positions are: the input (`before`) or the output of `module` (empty: the input of the head itself).

    They are [n, width, ...] (`first`) or [n, ..., width].
    """

    module: str
    before: bool
    first: bool
    width: int


@dataclass
class _Visit:
    """A module that a pass went through: when it began and ended, what it was given and gave."""

    name: str
    module: nn.Module
    begun: int
    given: torch.Tensor | None
    ended: int = -1
    gave: torch.Tensor | None = None


def find_pool(network: nn.Module, source: str, head: str, features: int, channels: int, size: int, pool_from: str | None) -> Pool:
    """What the network pools for its output layer `head`, which takes `features` of it: the last tensor of several positions.

    It is the input of the module that pools, where there is one, else the output of the last module before. `pool_from`: the
    module whose output it is. Raises UserError where there is none, only one position, or more than a pooling comes after it.
    """
    visits, parameters = _visits(network, channels, size)
    at = next((visit for visit in reversed(visits) if visit.name == head), None)
    if at is None or at.given is None:
        raise UserError(
            f"{source}: its output layer '{head}' is not called with its features; an attention head cannot stand there"
        )
    if pool_from is not None:
        return _named(network, source, visits, at, pool_from, features)
    if _several(at.given):
        return _pool("", True, at.given, at.module, features, source)
    before = [visit for visit in visits if visit.ended >= 0 and visit.ended < at.begun]
    pooling = [v for v in before if _several(v.given) and v.gave is not None and not _several(v.gave) and _small(v.module)]
    moments: list[tuple[int, _Visit, bool]] = []
    for visit in visits:
        if visit.begun < at.begun and not any(p.begun < visit.begun < p.ended for p in pooling):
            moments += [(visit.begun, visit, True)] if _several(visit.given) else []
            moments += [(visit.ended, visit, False)] if 0 <= visit.ended < at.begun and _several(visit.gave) else []
    if not moments:
        raise _none(source, "nothing in it has more than one position before its head")
    _, visit, early = max(moments, key=lambda moment: moment[0])
    tensor = visit.given if early else visit.gave
    assert tensor is not None
    all_behind, behind = _behind(at.given, parameters), _behind(tensor, parameters)
    if all_behind and not behind:
        raise _none(source, "its last tensor of several positions is the image itself")
    after = sorted(all_behind - behind)
    between = [
        n for n in after if parameters[n].dim() > 1 and not (early and n.startswith(f"{visit.name}.") and visit in pooling)
    ]
    mixing = [n for n in between if parameters[n].dim() == 4 and max(parameters[n].shape[2:]) > 1]
    if mixing or len(between) > _BETWEEN:
        few = first_few([name.removesuffix(".weight") for name in between], 3)
        raise _none(
            source, f"it pools one position, since {few} come after its last {list(tensor.shape[1:])} (at '{visit.name}')"
        )
    return _pool(visit.name, early, tensor, visit.module, features, source)


def _behind(tensor: torch.Tensor, parameters: dict[str, torch.Tensor]) -> set[str]:
    """The parameters that a tensor depends on."""
    asked = {name: value for name, value in parameters.items() if value.requires_grad}
    if not tensor.requires_grad or not asked:
        return set()
    gradients = torch.autograd.grad(tensor.sum(), list(asked.values()), allow_unused=True, retain_graph=True)
    return {name for name, gradient in zip(asked, gradients, strict=True) if gradient is not None}


def _none(source: str, why: str) -> UserError:
    return UserError(
        f"{source}: {why}, so there is nothing to attend to: set a larger model.adapt.image_size, or name the module whose "
        "output is to be attended to, such as model.adapt.layers.pool_from: layer4"
    )


def _named(network: nn.Module, source: str, visits: list[_Visit], at: _Visit, name: str, features: int) -> Pool:
    known = {n for n, _ in network.named_modules() if n}
    if name not in known:
        raise UserError(f"model.adapt.layers.pool_from: {source} has no module '{name}'{nearest(name, known)}")
    last = next((visit for visit in reversed(visits) if visit.name == name and 0 <= visit.ended < at.begun), None)
    if last is None:
        raise UserError(f"model.adapt.layers.pool_from: '{name}' of {source} does not run before the head '{at.name}'")
    if last.gave is None or last.gave.dim() not in (3, 4):
        given = "no tensor" if last.gave is None else f"a tensor {list(last.gave.shape)}"
        raise UserError(f"model.adapt.layers.pool_from: '{name}' of {source} gives {given}, not a map or tokens")
    if not _several(last.gave):
        raise UserError(
            f"model.adapt.layers.pool_from: '{name}' of {source} gives one position, {list(last.gave.shape)}, and attention over "
            "one is none; name a module before it, or set a larger model.adapt.image_size"
        )
    return _pool(name, False, last.gave, last.module, features, source)


def _several(tensor: torch.Tensor | None) -> bool:
    """Whether it is a map or a list of tokens with more than one position: its largest dimension is not all there is."""
    return tensor is not None and tensor.dim() in (3, 4) and prod(tensor.shape[1:]) > max(tensor.shape[1:])


def _small(module: nn.Module) -> bool:
    """Whether a module that makes one position of many is no more than a pooling (some pool by attention)."""
    weights = [p for p in module.parameters() if p.dim() > 1]
    return len(weights) <= _SMALL and not any(isinstance(m, nn.Conv2d) and max(m.kernel_size) > 1 for m in module.modules())


def _pool(name: str, before: bool, tensor: torch.Tensor, module: nn.Module, features: int, source: str) -> Pool:
    """Tell the width from the positions: it is what the head takes, or a convolution's; a map of an image is square."""
    shape, last = tensor.shape[1:], tensor.shape[-1]
    if isinstance(module, nn.Conv2d | nn.BatchNorm2d | nn.AdaptiveAvgPool1d | nn.AdaptiveAvgPool2d | nn.Linear):
        first = not isinstance(module, nn.Linear)
    elif (shape[0] == features) != (last == features):
        first = shape[0] == features
    elif len(shape) == 2:
        first = False
    elif shape[1] == shape[2]:
        first = True
    elif shape[0] == shape[1]:
        first = False
    else:
        raise UserError(
            f"{source}: '{name}' has {list(tensor.shape)}, of which it cannot be told what is width and what are positions; name "
            "another module as model.adapt.layers.pool_from"
        )
    return Pool(name, before, first, shape[0] if first else last)


def _visits(network: nn.Module, channels: int, size: int) -> tuple[list[_Visit], dict[str, torch.Tensor]]:
    """Every call of a module in one pass, in the order in which they began, and what stood for the parameters.

    A head of graft's is one module.
    """
    parameters: dict[str, torch.Tensor] = {}
    visits: list[_Visit] = []
    clock = iter(range(10**9))

    def tensor(value: Any) -> torch.Tensor | None:
        if isinstance(value, tuple | list):
            value = value[0] if value else None
        return value if isinstance(value, torch.Tensor) else None

    def begin(name: str) -> Callable[[nn.Module, tuple[Any, ...], dict[str, Any]], None]:
        def note(module: nn.Module, given: tuple[Any, ...], named: dict[str, Any]) -> None:
            every = [value for value in (*given, *named.values()) if isinstance(value, torch.Tensor)]
            visits.append(_Visit(name, module, next(clock), every[0] if every else None))

        return note

    def end(name: str) -> Callable[[nn.Module, tuple[Any, ...], Any], None]:
        def note(module: nn.Module, given: tuple[Any, ...], output: Any) -> None:
            visit = next(visit for visit in reversed(visits) if visit.name == name)
            visit.ended, visit.gave = next(clock), tensor(output)

        return note

    def passed(meta: bool) -> None:
        visits.clear()
        with ExitStack() as stack:
            inside = "\0"
            for name, module in network.named_modules():
                if not name or name.startswith(inside):
                    continue
                inside = f"{name}." if isinstance(module, GRAFTED) else inside
                stack.callback(module.register_forward_pre_hook(begin(name), prepend=True, with_kwargs=True).remove)
                stack.callback(module.register_forward_hook(end(name)).remove)
            stack.enter_context(torch.enable_grad())
            _, values = send(network, channels, size, training=False, meta=meta)
            parameters.update({name: values[name] for name, _ in network.named_parameters()})

    _either(network, passed)
    return visits, parameters


def _either(network: nn.Module, passed: Callable[[bool], None]) -> None:
    """Shapes alone, or for real where the network cannot do without values."""
    try:
        passed(True)
    except Exception:  # may be the meta device's fault
        if any(p.is_meta for p in network.parameters()):
            raise
        passed(False)


def silent(network: nn.Module, channels: int, size: int) -> set[str]:
    """The parameters that nothing depends on that the network gives in training."""
    found: set[str] = set()

    def passed(meta: bool) -> None:
        with torch.enable_grad():
            outputs, values = send(network, channels, size, training=True, meta=meta)
            parameters = {name: values[name] for name, _ in network.named_parameters()}
            found.update(set(parameters) - _behind(torch.cat([output.flatten() for output in outputs]), parameters))

    _either(network, passed)
    return found


def skip(network: nn.Module, before: set[str], channels: int, size: int, heads: list[Attention]) -> None:
    """Take out the layers that nothing depends on any more now that connected heads look past them.

    `before`: what nothing depended on in the plain network either. Layers that something else counts on stay, and their
    parameters become buffers, which learn under no strategy.
    """
    dead = silent(network, channels, size) - before
    pools = [head.pool for head in heads]
    parameters = dict(network.named_parameters())
    taken: list[tuple[nn.Module, str, nn.Module]] = []
    for name, module in list(network.named_modules()):
        inside = {f"{name}.{inner}" for inner, _ in module.named_parameters()}
        if name and inside and inside <= dead and not any(pool.startswith(f"{name}.") for pool in pools):
            dead -= inside
            parent, _, child = name.rpartition(".")
            owner = network.get_submodule(parent)
            taken.append((owner, child, module))
            setattr(owner, child, Skipped())
    if taken:
        for head in heads:
            disconnect(network, head)
            head.connect(network)
        try:
            silent(network, channels, size)
        except Exception:  # something between them counts on what they do
            for owner, child, module in taken:
                setattr(owner, child, module)
            dead |= set(parameters) & (silent(network, channels, size) - before)
    for name in dead:
        parent, _, child = name.rpartition(".")
        owner = network.get_submodule(parent)
        value = owner._parameters.pop(child)
        assert value is not None
        owner.register_buffer(child, value.detach())


def disconnect(network: nn.Module, head: nn.Module) -> None:
    """Let the attention in a head, which is to be replaced, look at the network no more."""
    heads = {id(module) for module in head.modules() if isinstance(module, Attention)}
    for module in network.modules():
        before = module._forward_pre_hooks, module._forward_pre_hooks_with_kwargs
        after = module._forward_hooks, module._forward_hooks_with_kwargs
        for hooks, named in (before, after):
            for key in [key for key, hook in hooks.items() if id(getattr(hook, "__self__", None)) in heads]:
                del hooks[key]
                named.pop(key, None)
