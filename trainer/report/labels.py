"""What labels are worth: a sweep's results against the number of labelled images, one line for each of the other settings."""

from __future__ import annotations

import math
from collections.abc import Sequence
from html import escape

from trainer.report.page import metric_text
from trainer.report.svg import Series, line_chart
from trainer.rundir.metric import lower_is_better
from trainer.rundir.sweep import Row, as_text, keys

COUNTS = ("data.per_class", "data.fraction")  # the settings that say how many labels are used
_LINES = 8
_NOISE = ("train.seed",)  # repetitions of one setting: their mean is drawn


def label_curves(metric: str, rows: Sequence[Row]) -> str:
    """A card with the chart; empty text for a sweep that does not vary the number of labels, or in one value only."""
    key = next((k for k in COUNTS if len({row.settings.get(k) for row in rows if row.settings.get(k) is not None}) > 1), None)
    if key is None:
        return ""
    others = [k for k in keys(list(rows)) if k != key and k not in _NOISE]
    lines: dict[str, dict[float, list[float]]] = {}
    for row in sorted(rows, key=lambda row: row.index):
        if row.best is not None and math.isfinite(row.best) and row.settings.get(key) is not None:
            name = ", ".join(as_text(row.settings[k]) for k in others if k in row.settings) or "all members"
            lines.setdefault(name, {}).setdefault(float(row.settings[key]), []).append(row.best)
    means = {name: {x: math.fsum(ys) / len(ys) for x, ys in points.items()} for name, points in lines.items()}
    sign = 1 if lower_is_better(metric) else -1
    chosen = sorted(means, key=lambda name: sign * means[name][max(means[name])])[:_LINES]
    if not any(len(means[name]) > 1 for name in chosen):
        return ""
    series = [
        Series(name, sorted(means[name]), [means[name][x] for x in sorted(means[name])], colour, dots=True)
        for colour, name in enumerate(chosen)
    ]
    share = metric_text(metric, 0.5).endswith("%")
    chart = line_chart(series, title=f"{metric} against {key}", x_label=key, y_percent=share)
    legend = "".join(f'<span><i style="border-color:var(--s{s.colour})"></i>{escape(s.name)}</span>' for s in series)
    left = f'<p class="soft small">The best {_LINES} of {len(means)}.</p>' if len(means) > _LINES else ""
    return (
        f"<h2>{escape(metric.removeprefix('val/').capitalize())} against the number of labels</h2>"
        f'<div class="card"><div class="legend">{legend}</div>{chart}{left}</div>'
    )
