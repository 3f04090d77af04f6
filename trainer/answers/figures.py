"""The figures of an evaluation, class by class, label by label or value by value."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True)
class Figures:
    """`rows` is where they stand in the details of an evaluation, `of` what a row is of, `columns` their names for people."""

    rows: str
    of: str
    columns: dict[str, str]


_RATES = {"precision": "precision", "recall": "recall", "f1": "F1"}
FIGURES = {
    "classify": Figures("per_class", "class", _RATES),
    "multilabel": Figures("per_label", "label", {"ap": "average precision", **_RATES}),
    "regress": Figures(
        "per_value", "value",
        {"mae": "mean absolute error", "rmse": "root mean square error", "r2": "R²", "pearson": "correlation"},
    ),
}  # fmt: skip


def figures_of(details: dict[str, Any]) -> dict[str, tuple[Figures, list[dict[str, Any]]]]:
    """The rows of each head, of one without a name where there are no heads; without those that there are none of."""
    heads = details.get("heads") or {"": details}
    found = {
        str(name): (FIGURES[kind], head) for name, head in heads.items() if (kind := head.get("kind", "classify")) in FIGURES
    }
    return {name: (figures, head[figures.rows]) for name, (figures, head) in found.items() if head.get(figures.rows)}
