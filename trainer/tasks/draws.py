"""Random numbers without state: what a sample is given is a function of whole numbers alone (seed, stream, epoch, index …).

SplitMix64 (Steele, Lea and Flood 2014), seeded for each sample by itself and worked out for a whole batch at once, on any device:
however a batch is cut over ranks and micro-batches, each sample has the same noise, and a run that goes on needs no state of it.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch

_WORD = 1 << 64
_GOLDEN = 0x9E3779B97F4A7C15


def _signed(value: int) -> int:
    """A 64-bit word as torch has it: torch's whole numbers are signed, and wrap as unsigned ones do."""
    value %= _WORD
    return value - _WORD if value >= _WORD // 2 else value


_FIRST, _SECOND = _signed(0xBF58476D1CE4E5B9), _signed(0x94D049BB133111EB)


def _above(words: torch.Tensor, bits: int) -> torch.Tensor:
    """Shifted right by so many bits, with zeros from the left."""
    return (words >> bits) & ((1 << (64 - bits)) - 1)


def _mixed(words: torch.Tensor) -> torch.Tensor:
    """The output function of SplitMix64."""
    words = (words ^ _above(words, 30)) * _FIRST
    words = (words ^ _above(words, 27)) * _SECOND
    return words ^ _above(words, 31)


def keys(seed: int, stream: int, *columns: torch.Tensor) -> torch.Tensor:
    """A 64-bit key for each sample, int64 [n], from whole numbers [n] that tell it apart; other streams share nothing with it."""
    (count,) = columns[0].shape
    found = torch.zeros(count, dtype=torch.int64, device=columns[0].device)
    for value in (seed, stream):
        found = _mixed(found + _signed(value + _GOLDEN))
    for column in columns:
        found = _mixed(found ^ _mixed(column.to(torch.int64) + _signed(_GOLDEN)))
    return found


def _words(key: torch.Tensor, count: int) -> torch.Tensor:
    """The first `count` words of each key's SplitMix64 sequence, int64 [n, count]."""
    places = torch.arange(1, count + 1, dtype=torch.int64, device=key.device) * _signed(_GOLDEN)
    return _mixed(key[:, None] + places)


def uniform(key: torch.Tensor) -> torch.Tensor:
    """One number in [0, 1) a key, float64 [n], of 53 bits."""
    return _above(_words(key, 1)[:, 0], 11).double() * 2.0**-53


def normal(key: torch.Tensor, shape: Sequence[int]) -> torch.Tensor:
    """Normally distributed numbers, float32 [n, *shape] (Box and Muller 1958): two of each word, of 32 bits each."""
    count = math.prod(shape)
    words = _words(key, -(-count // 2))
    radius = (_above(words, 32) + 1).double().mul_(2.0**-32).log_().mul_(-2).sqrt_()
    angle = (words & 0xFFFFFFFF).double().mul_(2 * math.pi * 2.0**-32)
    pairs = torch.cat([radius * angle.cos(), radius * angle.sin()], dim=1)
    return pairs[:, :count].float().reshape(len(key), *shape)
