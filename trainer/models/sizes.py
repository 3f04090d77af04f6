"""Which sizes of images an architecture takes, by building it for others."""

from __future__ import annotations

import time
from collections.abc import Callable

import torch
from torch import nn

from trainer.models.probe import trace

_UNITS = (7, 8, 12, 14, 16, 24, 32, 64, 112, 224)  # patches, windows and strides of the field
_SECONDS = 20.0


def nearest_working(works: Callable[[int], bool], size: int, reach: int) -> list[int]:
    """The nearest smaller and the nearest larger size that work, as far as there are such within so many pixels."""
    ways = (range(size - 1, max(0, size - 1 - reach), -1), range(size + 1, size + 1 + reach))
    return [side for way in ways if (side := next(filter(works, way), None)) is not None]


def nearest_size(make: Callable[[int], nn.Module], channels: int, size: int) -> int | None:
    """The nearest multiple of a common patch or stride that goes through, in shapes alone; None where none was found in time."""
    near = {unit * (size // unit + step) for unit in _UNITS for step in (-1, 0, 1, 2)}
    until = time.monotonic() + _SECONDS
    for side in sorted((side for side in near if side >= 8 and side != size), key=lambda side: (abs(side - size), side)):
        if time.monotonic() > until:
            return None
        try:
            with torch.device("meta"), torch.random.fork_rng(devices=[]):
                network = make(side)
            for training in (False, True):
                trace(network, channels, side, training=training, meta=True)
        except Exception:  # it does not take that size either; or its constructor needs values, and no size can be named
            continue
        return side
    return None
