"""How what a task says of images is told to people, from the JSON of its answers alone: one module a kind of task, found by name.

Each has `Teller(details)` for the answers of an evaluation, and `headings`, `cells` and `said` for what `graft predict` gives.
"""

from __future__ import annotations

import importlib
from collections.abc import Sequence
from dataclasses import dataclass
from types import ModuleType
from typing import Any, Protocol

Json = dict[str, Any]
_KEYS = {"class": "classify", "labels": "multilabel", "values": "regress", "heads": "multi"}  # of a prediction


@dataclass(frozen=True)
class Line:
    """A line below a picture; `right` is none where it is neither right nor wrong."""

    text: str
    right: bool | None = None


@dataclass(frozen=True)
class Example:
    """An answer worth showing: in which group of pictures, what was said, and what is so."""

    index: int
    group: str
    predicted: str
    truth: str
    correct: bool | None
    confidence: float | None = None


class Teller(Protocol):
    """Tells the answers of an evaluation; `details` are those of `Evaluation`."""

    def lines(self, answer: Json) -> list[Line]:
        """What stands below a picture."""

    def columns(self) -> list[str]:
        """The columns of predictions.csv, after the sample's name."""

    def cells(self, answer: Json) -> list[str]:
        """A row of it."""

    def examples(self, answers: Sequence[Json], count: int) -> list[Example]:
        """At most so many answers of each group, the most telling first."""


def module_of(kind: str) -> ModuleType:
    """The module of a kind of task."""
    return importlib.import_module(f"{__package__}.{kind}")


def teller(details: Json) -> Teller:
    """The teller of an evaluation; one without a kind is of classes, as all were once."""
    made: Teller = module_of(str(details.get("kind", "classify"))).Teller(details)
    return made


def kind_of(prediction: Json) -> str:
    """The kind of task that a prediction is of."""
    return next(kind for key, kind in _KEYS.items() if key in prediction)
