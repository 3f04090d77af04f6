"""Activation checkpointing (Chen et al. 2016): of a block its input is kept, and the rest is worked out again."""

from __future__ import annotations

from contextlib import AbstractContextManager, nullcontext
from types import MethodType
from typing import Any

import torch
from torch import nn
from torch.utils.checkpoint import checkpoint

Held = list[tuple[nn.Module, str, torch.Tensor]]


def recompute(unit: nn.Module) -> None:
    """Let a block keep nothing of a forward pass with gradients but what it was given. Names and values stay.

    The second pass finds the random state and the buffers that the first one found, and leaves no trace: its dropout is the same,
    and running statistics move once.
    """
    forward = unit.forward

    def call(given: tuple[Any, ...], named: dict[str, Any]) -> Any:
        return forward(*given, **named)

    def kept(_: nn.Module, *given: Any, **named: Any) -> Any:
        if not torch.is_grad_enabled():
            return forward(*given, **named)
        before = [(module, name, value.detach().clone()) for module, name, value in _buffers(unit)]

        def contexts() -> tuple[AbstractContextManager[Any], AbstractContextManager[Any]]:
            return nullcontext(), _AsBefore(before)

        # one argument for all by name: torch looks for devices, whose random state it keeps, in what is given by place
        return checkpoint(call, given, named, use_reentrant=False, context_fn=contexts)

    unit.forward = MethodType(kept, unit)


def _buffers(unit: nn.Module) -> Held:
    return [(m, name, value) for m in unit.modules() for name, value in m._buffers.items() if value is not None]


class _AsBefore:
    """The buffers of the first pass stand in for those of now; again and again, where the graph is gone through again."""

    def __init__(self, before: Held) -> None:
        self._before = before

    def __enter__(self) -> None:
        self._now = [(module, name, module._buffers[name]) for module, name, _ in self._before]
        for module, name, value in self._before:
            module._buffers[name] = value.clone()

    def __exit__(self, *_: object) -> None:
        for module, name, value in self._now:
            module._buffers[name] = value
