"""The members of a sweep as a matrix: sources x targets x strategies."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from trainer.rundir.metric import lower_is_better
from trainer.rundir.sweep import Row

AXES = ("source", "target", "strategy")
Key = tuple[str, str, str]


@dataclass(frozen=True)
class Matrix:
    """What came out for each (source, target, strategy); `best` are the best of each target, `spread` its lowest and highest."""

    metric: str
    sources: tuple[str, ...]
    targets: tuple[str, ...]
    strategies: tuple[str, ...]
    rows: dict[Key, Row]

    def value(self, key: Key) -> float | None:
        """The best value of a cell; none where nothing came out yet."""
        row = self.rows.get(key)
        return row.best if row is not None else None

    def of(self, target: str) -> list[float]:
        """All values of a target, which are what can be compared: another target is another scale."""
        return [row.best for (_, there, _), row in self.rows.items() if there == target and row.best is not None]

    def best(self, target: str) -> float | None:
        """The best value of a target."""
        return (min if lower_is_better(self.metric) else max)(self.of(target), default=None)

    def goodness(self, key: Key) -> float | None:
        """Where a cell stands between the worst (0) and the best (1) of its target; 1 where all are equal."""
        value, values = self.value(key), self.of(key[1])
        if value is None:
            return None
        low, high = min(values), max(values)
        if high == low:
            return 1.0
        share = (value - low) / (high - low)
        return 1 - share if lower_is_better(self.metric) else share


def matrix(metric: str, rows: Sequence[Row]) -> Matrix | None:
    """The matrix that a sweep is; none when it is another kind of sweep."""
    ordered = sorted(rows, key=lambda row: row.index)
    if not ordered or any(tuple(row.settings) != AXES for row in ordered):
        return None
    found = {(str(r.settings["source"]), str(r.settings["target"]), str(r.settings["strategy"])): r for r in ordered}
    sources, targets, strategies = (tuple(dict.fromkeys(key[axis] for key in found)) for axis in range(3))
    return Matrix(metric, sources, targets, strategies, found)
