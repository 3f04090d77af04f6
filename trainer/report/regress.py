"""The section of an evaluation of numbers: what was said against what is so."""

from __future__ import annotations

from collections.abc import Sequence
from html import escape

from trainer.report.read import Json
from trainer.report.svg import number, ticks

_SIDE, _LEFT, _TOP, _BOTTOM, _RIGHT = 300.0, 58.0, 10.0, 40.0, 14.0
_KEYS = {"mae": "mean absolute error", "rmse": "root mean square error", "r2": "R²", "pearson": "correlation"}
_DRAWN = 12  # values with a chart


def of_values(found: Json, title: str, when: str) -> str:
    """A table with the figures of every value, and a chart for each."""
    samples = int(found.get("samples") or 0)
    intro = f'<p class="soft">{when}{samples:,} validation samples, in the units of the data.</p>'
    rows = []
    for entry in found.get("per_value", []):
        figures = [*(entry.get(key) for key in _KEYS), entry.get("std")]
        cells = "".join(f"<td>{f'{value:.4g}' if isinstance(value, int | float) else '–'}</td>" for value in figures)
        rows.append(f"<tr><td>{escape(str(entry.get('name')))}</td>{cells}<td>{int(entry.get('support') or 0):,}</td></tr>")
    heads = "".join(f"<th>{name}</th>" for name in ("value", *_KEYS.values(), "deviation in training", "samples"))
    table = f'<div class="card"><div class="scroll"><table><tr>{heads}</tr>{"".join(rows)}</table></div></div>'
    charts = [agreement(points, str(name)) for name, points in list((found.get("points") or {}).items())[:_DRAWN]]
    cards = "".join(f'<div class="card">{chart}</div>' for chart in charts if chart)
    drawn = f'<div class="two" style="margin-top:14px">{cards}</div>' if cards else ""
    return f"<h2>{title}Said and true</h2>{intro}{table}{drawn}"


def agreement(points: Sequence[Sequence[float]], name: str) -> str:
    """A dot for each (truth, said), on the dashed line where both agree; empty text without points."""
    if not points:
        return ""
    values = [value for point in points for value in point]
    low, high = min(values), max(values)
    pad = (high - low) * 0.04 or abs(high) * 0.1 or 1.0
    low, high = low - pad, high + pad

    def px(value: float) -> float:
        return _LEFT + _SIDE * (value - low) / (high - low)

    def py(value: float) -> float:
        return _TOP + _SIDE * (1 - (value - low) / (high - low))

    wide, tall = _LEFT + _SIDE + _RIGHT, _TOP + _SIDE + _BOTTOM
    label = escape(f"{name}: said against true")
    parts = [f'<svg viewBox="0 0 {wide:.0f} {tall:.0f}" style="max-width:420px" role="img" aria-label="{label}">']
    for tick in ticks(low, high):
        parts.append(f'<path class="grid" d="M{_LEFT} {py(tick):.1f}H{px(high):.1f}M{px(tick):.1f} {py(low):.1f}v5"/>')
        parts.append(f'<text class="tick" x="{_LEFT - 7}" y="{py(tick) + 4:.1f}" text-anchor="end">{number(tick)}</text>')
        parts.append(f'<text class="tick" x="{px(tick):.1f}" y="{py(low) + 19:.1f}" text-anchor="middle">{number(tick)}</text>')
    parts.append(f'<text class="tick" x="{(px(low) + px(high)) / 2:.1f}" y="{tall - 5}" text-anchor="middle">true</text>')
    path = f"M{px(low):.1f} {py(low):.1f}L{px(high):.1f} {py(high):.1f}"
    parts.append(f'<path class="line dashed" style="stroke:var(--soft)" d="{path}"/>')
    radius = 3 if len(points) <= 200 else 2
    for truth, said in points:
        tip = f"said {number(said)}, true {number(truth)}"
        at = f'cx="{px(truth):.1f}" cy="{py(said):.1f}" r="{radius}"'
        parts.append(f'<circle style="fill:var(--s0);fill-opacity:.55" {at}><title>{tip}</title></circle>')
    return f"<h3>{label}</h3>" + "".join([*parts, "</svg>"])
