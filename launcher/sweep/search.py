"""From the values to try to the settings of each member: pure functions."""

from __future__ import annotations

import hashlib
import itertools
import json
import math
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, Literal

from pydantic import Field, model_validator

from trainer.config import UserError
from trainer.config.base import Section

Settings = dict[str, Any]
_DIGITS = 6  # of a drawn number: finer than any result can tell, and short in a table
_MISSES = 1000  # draws in a row without anything new: then there is nothing new


class Range(Section):
    """Numbers from `low` to `high`, to be drawn from."""

    low: float
    high: float
    scale: Literal["linear", "log"] = Field("linear", description="log: as many between 1e-5 and 1e-4 as between 1e-3 and 1e-2")
    integer: bool = Field(False, description="whole numbers only, both ends among them")

    @model_validator(mode="after")
    def _ordered(self) -> Range:
        if not self.low < self.high:
            raise ValueError(f"low is {self.low:g} and high is {self.high:g}; low must be less")
        if self.scale == "log" and self.low <= 0:
            raise ValueError(f"low is {self.low:g}: a logarithmic range begins above 0; write scale: linear, or another low")
        if self.integer and not (self.low.is_integer() and self.high.is_integer()):
            raise ValueError("low and high of whole numbers must be whole numbers")
        return self

    def at(self, share: float) -> int | float:
        """The number at a share of the range, from 0 (`low`) to below 1."""
        low, high = (self.low, self.high + 1) if self.integer else (self.low, self.high)
        value = low * (high / low) ** share if self.scale == "log" else low + (high - low) * share
        if self.integer:
            return int(min(max(math.floor(value), self.low), self.high))
        return min(max(float(f"{value:.{_DIGITS}g}"), self.low), self.high)


def grid(over: Mapping[str, Sequence[Any]]) -> list[Settings]:
    """Every combination; the last key changes fastest."""
    return [dict(zip(over, values, strict=True)) for values in itertools.product(*over.values())]


def drawn(over: Mapping[str, Sequence[Any] | Range], count: int, seed: int) -> list[Settings]:
    """`count` different combinations, drawn by chance.

    What is drawn for a key is a function of (seed, number of the draw, key) alone: a larger count keeps the members there are,
    and another key moves no value of the others. Raises UserError when there are not so many.
    """
    found: dict[str, Settings] = {}
    missed = 0
    for draw in itertools.count():
        settings = {key: _choice(values, _share(seed, draw, key)) for key, values in over.items()}
        missed = missed + 1 if (same := json.dumps(settings, sort_keys=True)) in found else 0
        found.setdefault(same, settings)
        if len(found) == count:
            break
        if missed > max(_MISSES, 10 * len(found)):
            raise UserError(
                f"search.count is {count} and only {len(found)} different combinations can be drawn; "
                f"write count: {len(found)}, or search: {{kind: grid}} to try them all"
            )
    return list(found.values())


def _choice(values: Sequence[Any] | Range, share: float) -> Any:
    return values.at(share) if isinstance(values, Range) else values[int(share * len(values))]


def _share(seed: int, draw: int, key: str) -> float:
    """A number from 0 to below 1."""
    digest = hashlib.sha256(f"{seed}:{draw}:{key}".encode()).digest()
    return int.from_bytes(digest[:6], "big") / 2**48


def overlapping(keys: Iterable[str]) -> tuple[str, str] | None:
    """Two keys of which one is a section that holds the other."""
    ordered = sorted(keys, key=lambda key: key.split("."))
    return next(((a, b) for a, b in itertools.pairwise(ordered) if b.startswith(a + ".")), None)
