"""Amounts of training, as a run file writes them: `1 epoch`, `500 steps`, `20_000 samples`, `10 min`."""

from __future__ import annotations

import math
import re
from dataclasses import dataclass
from typing import Annotated, Any, Literal

from pydantic import BeforeValidator, PlainSerializer, WithJsonSchema

Unit = Literal["epoch", "step", "sample", "second"]

_UNITS: dict[str, tuple[Unit, float]] = {
    "epoch": ("epoch", 1), "epochs": ("epoch", 1),
    "step": ("step", 1), "steps": ("step", 1),
    "sample": ("sample", 1), "samples": ("sample", 1),
    "s": ("second", 1), "sec": ("second", 1), "second": ("second", 1), "seconds": ("second", 1),
    "min": ("second", 60), "minute": ("second", 60), "minutes": ("second", 60),
    "h": ("second", 3600), "hour": ("second", 3600), "hours": ("second", 3600),
}  # fmt: skip
_PATTERN = re.compile(r"\s*([0-9][0-9_]*(?:\.[0-9]+)?)\s*([a-z]+)\s*")


@dataclass(frozen=True)
class Amount:
    """A number of epochs, steps, samples or seconds; `text` is how the user wrote it."""

    value: float
    unit: Unit
    text: str

    def samples(self, *, epoch_samples: int, step_samples: int) -> int:
        """The amount in samples, at least 1. Not defined for seconds (ValueError)."""
        per = {"epoch": epoch_samples, "step": step_samples, "sample": 1}
        if self.unit == "second":
            raise ValueError(f"'{self.text}' is a time, not an amount of training")
        return max(1, math.ceil(self.value * per[self.unit]))


def parse_amount(value: Any, *, times: bool) -> Amount:
    """Parse `10 min` (only where `times`), `1 epoch`, `500 steps`, `4096 samples`."""
    example = "'1 epoch', '500 steps', '20000 samples'" + (" or '10 min'" if times else "")
    if isinstance(value, Amount):
        return value
    match = _PATTERN.fullmatch(value.lower()) if isinstance(value, str) else None
    if match is None or match[2] not in _UNITS:
        raise ValueError(f"write a number and a unit, such as {example}")
    unit, scale = _UNITS[match[2]]
    number = float(match[1].replace("_", "")) * scale
    if unit == "second" and not times:
        raise ValueError(f"a time does not fit here; write {example}")
    if number <= 0:
        raise ValueError("must be more than 0")
    return Amount(number, unit, " ".join(value.split()))


_TEXT = PlainSerializer(lambda a: a.text, return_type=str)
Interval = Annotated[
    Amount,
    BeforeValidator(lambda v: parse_amount(v, times=True)),
    _TEXT,
    WithJsonSchema({"type": "string", "examples": ["1 epoch", "500 steps", "10 min"]}),
]
TrainingAmount = Annotated[
    Amount,
    BeforeValidator(lambda v: parse_amount(v, times=False)),
    _TEXT,
    WithJsonSchema({"type": "string", "examples": ["1 epoch", "500 steps", "20000 samples"]}),
]


def parse_duration(value: Any) -> float:
    """Seconds of `10 min`, `2 h`, `30 s`."""
    if isinstance(value, int | float) and not isinstance(value, bool):
        return float(value)
    amount = parse_amount(value, times=True)
    if amount.unit != "second":
        raise ValueError("write a time, such as '10 min' or '30 s'")
    return amount.value


Seconds = Annotated[
    float,
    BeforeValidator(parse_duration),
    WithJsonSchema({"anyOf": [{"type": "number"}, {"type": "string", "examples": ["10 min"]}]}),
]
