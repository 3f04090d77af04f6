"""One forward pass, written down: which modules are called in which order, with what, and where something begins to learn."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import nn
from torch.utils import _pytree as pytree

Key = tuple[str, int]  # a module and the number of its call within the pass, from 0
_CONSTANT = 4 << 20  # bytes up to which an output that may be a constant is kept


@dataclass
class Leaf:
    """A tensor that a call gave: its shape, and its value where it may be the same for every batch."""

    shape: tuple[int, ...]
    dtype: torch.dtype
    value: torch.Tensor | None


@dataclass
class Call:
    """A call of a module.

    `parent`: the index of the call around it, none for the network itself; `place`: where its first floating tensor stands,
    an argument's number or name, with its `shape`, `dtype` and the mean size of the numbers of its first two rows; `same`: that
    tensor is also the one that the call around it was given. `work`: operations before it. `output`: leaves and structure of what
    it gave.
    """

    index: int
    key: Key
    module: nn.Module
    parent: int | None
    place: int | str | None
    shape: tuple[int, ...]
    dtype: torch.dtype | None
    size: float
    same: bool
    work: int
    output: tuple[list[Any], Any] | None = None


class _EnoughError(Exception):
    """Ends a pass that has shown what it was to show."""


@dataclass
class Trace:
    """The calls of a pass in their order, and the number of operations in all.

    `stopped`: what ended the pass, in words: something that learns, or that draws random numbers.
    """

    calls: list[Call] = field(default_factory=list)
    stopped: str = ""
    work: int = 0

    def by_key(self) -> dict[Key, Call]:
        return {call.key: call for call in self.calls}

    def around(self, call: Call) -> Iterator[Call]:
        """The calls around a call, from the inside to the network itself."""
        while call.parent is not None:
            call = self.calls[call.parent]
            yield call


def first_tensor(args: tuple[Any, ...], kwargs: dict[str, Any]) -> tuple[int | str | None, torch.Tensor | None]:
    """Where the first floating tensor among the arguments stands, and the tensor."""
    named: list[tuple[int | str, Any]] = [*enumerate(args), *kwargs.items()]
    for place, value in named:
        if isinstance(value, torch.Tensor) and value.is_floating_point() and value.dim():
            return place, value
    return None, None


def record(
    network: nn.Module, images: torch.Tensor, *, until_active: bool, work: Callable[[], int] = lambda: 0,
    look: Callable[[Call, torch.Tensor | None], None] = lambda call, given: None,
) -> Trace:  # fmt: skip
    """Send images through a network in the mode that it is in and write the calls down; `look` sees each call's tensor.

    `until_active` ends the pass where something learns, or draws from torch's generators, for the first time.
    """
    trace, counts, stack = Trace(), Counter[str](), list[tuple[Call, torch.Tensor | None]]()
    start = _states(images.device)
    count = len(images)

    def active(what: str) -> None:
        trace.stopped = what
        raise _EnoughError

    def enter(name: str) -> Callable[..., None]:
        def hook(module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
            place, given = first_tensor(args, kwargs)
            if until_active and stack:
                around = stack[-1][0].key[0]
                if given is not None and given.requires_grad:
                    active(f"{_named(around)} learns")
                if _drawn(start, images.device):
                    active(f"{_named(around)} draws random numbers in training")
            rows = given[:2].detach() if given is not None and given.shape[0] == count else None
            call = Call(
                len(trace.calls), (name, counts[name]), module, stack[-1][0].index if stack else None, place,
                tuple(given.shape) if given is not None else (), given.dtype if given is not None else None,
                float(rows.abs().mean(dtype=torch.float64)) if rows is not None and rows.numel() else 0.0,
                bool(stack) and given is not None and given is stack[-1][1], work(),
            )  # fmt: skip
            counts[name] += 1
            trace.calls.append(call)
            stack.append((call, given))
            look(call, given)

        return hook

    def leave(name: str) -> Callable[..., None]:
        def hook(module: nn.Module, args: tuple[Any, ...], output: Any) -> None:
            call, _ = stack.pop()
            leaves, structure = pytree.tree_flatten(output)
            if until_active:
                if any(isinstance(leaf, torch.Tensor) and leaf.requires_grad for leaf in leaves):
                    active(f"{_named(name)} learns")
                if _drawn(start, images.device):
                    active(f"{_named(name)} draws random numbers in training")
            call.output = [_leaf(leaf, count) for leaf in leaves], structure

        return hook

    handles = []
    try:
        for name, module in network.named_modules():
            handles.append(module.register_forward_pre_hook(enter(name), prepend=True, with_kwargs=True))
            handles.append(module.register_forward_hook(leave(name)))
        network(images)
    except _EnoughError:
        pass
    finally:
        for handle in handles:
            handle.remove()
    trace.work = work()
    return trace


def _named(name: str) -> str:
    return f"'{name}'" if name else "the network itself"


def _leaf(value: Any, count: int) -> Any:
    if not isinstance(value, torch.Tensor):
        return value
    small = (value.dim() == 0 or value.shape[0] != count) and value.numel() * value.element_size() <= _CONSTANT
    return Leaf(tuple(value.shape), value.dtype, value.detach().clone() if small else None)


def _states(device: torch.device) -> list[torch.Tensor]:
    """What a draw from torch's generators would change."""
    states = [torch.default_generator.get_state()]
    return [*states, torch.cuda.get_rng_state(device)] if device.type == "cuda" else states


def _drawn(start: list[torch.Tensor], device: torch.device) -> bool:
    return not all(torch.equal(before, now) for before, now in zip(start, _states(device), strict=True))


@contextmanager
def undisturbed(network: nn.Module, device: torch.device) -> Iterator[None]:
    """Afterwards the network has its buffers and modes as before, and nothing was drawn."""
    modes = {module: module.training for module in network.modules()}
    buffers = [(buffer, buffer.detach().clone()) for buffer in network.buffers()]
    with torch.random.fork_rng(devices=[device] if device.type == "cuda" else []):
        try:
            yield
        finally:
            for module, mode in modes.items():
                module.training = mode
            with torch.no_grad():
                for buffer, value in buffers:
                    buffer.copy_(value)
