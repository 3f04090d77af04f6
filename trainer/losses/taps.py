"""What layers of a network gave at its last call."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager

import torch
from torch import nn
from torch.nn import functional

from trainer.config import UserError, nearest


class Taps:
    """Keeps what named modules of a network give, while it listens; `called` is how messages call the network."""

    def __init__(self, network: nn.Module, called: str) -> None:
        self._network, self.called = network, called
        self._open = False
        self.seen: dict[str, torch.Tensor] = {}
        self._watched: set[str] = set()

    def watch(self, name: str, key: str) -> None:
        """Keep what this module gives. Raises UserError, which names `key` of the run file, for one that is not there."""
        modules = dict(self._network.named_modules())
        if name not in modules or not name:
            raise UserError(f"{key}: {self.called} has no layer '{name}'{nearest(name, [n for n in modules if n])}")
        if name in self._watched:
            return
        self._watched.add(name)

        def keep(_module: nn.Module, _given: object, output: object) -> None:
            if self._open:
                while isinstance(output, tuple | list) and output:
                    output = output[0]
                if isinstance(output, torch.Tensor):
                    self.seen[name] = output

        modules[name].register_forward_hook(keep)

    @contextmanager
    def listening(self) -> Iterator[None]:
        """Inside, what the modules give is kept; afterwards it is let go."""
        self._open = True
        try:
            yield
        finally:
            self._open = False
            self.seen = {}

    def of(self, name: str) -> torch.Tensor:
        """What a watched module gave. Raises UserError when it was not called, or gave no tensor."""
        if name not in self.seen:
            raise UserError(f"losses: the layer '{name}' of {self.called} was not called, or gave no tensor; name another one")
        return self.seen[name]


def maps(value: torch.Tensor, name: str) -> torch.Tensor:
    """Features as maps [n, channels, height, width], float32.

    Maps with the channels last (Swin) are told by their square; tokens [n, t, c] become a square grid without the tokens in front
    of it; [n, c] is one position. Raises UserError for what is none of these.
    """
    value = value.float()
    if value.dim() == 4:
        last = value.shape[1] == value.shape[2] != value.shape[3]
        return value.permute(0, 3, 1, 2) if last else value
    if value.dim() == 3:
        extra = next(e for e in range(value.shape[1] + 1) if math.isqrt(value.shape[1] - e) ** 2 == value.shape[1] - e)
        side = math.isqrt(value.shape[1] - extra)
        if side == 0:
            raise UserError(f"losses: the layer '{name}' gives no positions")
        return value[:, extra:].transpose(1, 2).reshape(len(value), -1, side, side)
    if value.dim() == 2:
        return value[:, :, None, None]
    raise UserError(f"losses: the layer '{name}' gives {list(value.shape)}, which are no features of images; name another one")


def like(reference: torch.Tensor, value: torch.Tensor) -> torch.Tensor:
    """The reference's maps at the resolution of `value`: averaged where they are finer, interpolated where they are coarser."""
    size = (value.shape[-2], value.shape[-1])
    if tuple(reference.shape[-2:]) == size:
        return reference
    if reference.shape[-1] >= size[-1]:
        return functional.adaptive_avg_pool2d(reference, size)
    return functional.interpolate(reference, size=size, mode="bilinear", align_corners=False)


def pairs(
    layers: str | Sequence[str] | dict[str, str], auto: Callable[[], list[tuple[str, str]]], key: str
) -> list[tuple[str, str]]:  # fmt: skip
    """(layer of the network, layer of the reference), as the run file names them. Raises UserError for none."""
    if isinstance(layers, str):
        return auto()
    found = list(layers.items()) if isinstance(layers, dict) else [(name, name) for name in layers]
    if not found:
        raise UserError(f"{key} is empty; name layers, or write auto")
    return found
