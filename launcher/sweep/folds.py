"""The members of a sweep that differ in their fold alone, put together: mean and deviation."""

from __future__ import annotations

import statistics
from collections.abc import Sequence

from trainer.rundir.sweep import Row, as_text

_KEY = "data.val"


def over_folds(rows: Sequence[Row]) -> list[str]:
    """A line for each setting that several folds were measured with: mean ± sample standard deviation of their best values."""
    groups: dict[tuple[tuple[str, str], ...], list[Row]] = {}
    for row in rows:
        if str(row.settings.get(_KEY, "")).startswith("fold:"):
            others = tuple(sorted((key, as_text(value)) for key, value in row.settings.items() if key != _KEY))
            groups.setdefault(others, []).append(row)
    lines = []
    for others, members in groups.items():
        values = [row.best for row in members if row.best is not None]
        if len(values) > 1:
            what = ", ".join(f"{key} {value}" for key, value in others)
            wanted = str(members[0].settings[_KEY]).rpartition("/")[2]
            mean, deviation = statistics.mean(values), statistics.stdev(values)
            lines.append(f"{what + ': ' if what else ''}{mean:.4f} ± {deviation:.4f} over {len(values)} of {wanted} folds")
    return lines
