"""The heat map of a matrix: sources against targets, one map a strategy, each target on its own scale."""

from __future__ import annotations

from html import escape

from trainer.report.page import metric_text
from trainer.report.svg import shortened
from trainer.rundir.matrix import Matrix

_SIZE = 12.0  # of the text, in the units of the drawing
_HIGH, _WIDE = 38.0, 86.0  # of a cell
_LETTERS = 18


def heat_maps(found: Matrix) -> str:
    """The section of the page: darker is better within its column; the best of a target is framed."""
    maps = "".join(
        f'<div class="card"><h3>{escape(strategy)}</h3>{heat_map(found, strategy)}</div>' for strategy in found.strategies
    )
    metric = escape(found.metric.removeprefix("val/"))
    about = f"Rows: what was grafted; columns: onto what; {metric}. Darker is better within its column, over all maps."
    return (
        f'<h2>Sources and targets</h2><p class="soft">{about} The best of each column is framed.</p><div class="two">{maps}</div>'
    )


def heat_map(found: Matrix, strategy: str) -> str:
    """One map as inline SVG; a cell without a result is empty, and says why when it is pointed at."""
    sources = [s for s in found.sources if any((s, t, strategy) in found.rows for t in found.targets)]
    edge = 14 + max(len(shortened(name, _LETTERS)) for name in sources) * _SIZE * 0.6
    longest = max(len(shortened(name, _LETTERS)) for name in found.targets) * _SIZE * 0.6
    wide = max(_WIDE, longest + 10)
    top = _SIZE * 2.2
    across, down = edge + wide * len(found.targets) + 2, top + _HIGH * len(sources) + 2
    parts = [
        f'<svg class="heat" viewBox="0 0 {across:.0f} {down:.0f}" style="max-width:{across:.0f}px" role="img" '
        f'aria-label="{escape(found.metric)} with {escape(strategy)}" font-size="{_SIZE}">'
    ]
    for column, target in enumerate(found.targets):
        x = edge + (column + 0.5) * wide
        parts.append(
            f'<text class="tick" x="{x:.1f}" y="{top - 9:.1f}" text-anchor="middle">{escape(shortened(target, _LETTERS))}</text>'
        )
    for line, source in enumerate(sources):
        y = top + line * _HIGH
        name = escape(shortened(source, _LETTERS))
        parts.append(f'<text class="tick" x="{edge - 8:.1f}" y="{y + _HIGH / 2 + 4:.1f}" text-anchor="end">{name}</text>')
        for column, target in enumerate(found.targets):
            parts.append(_cell(found, (source, target, strategy), edge + column * wide, y, wide))
    return "".join([*parts, "</svg>"])


def _cell(found: Matrix, key: tuple[str, str, str], x: float, y: float, wide: float) -> str:
    row, value, goodness = found.rows.get(key), found.value(key), found.goodness(key)
    place = f'x="{x + 1:.1f}" y="{y + 1:.1f}" width="{wide - 2:.1f}" height="{_HIGH - 2:.1f}"'
    tip = f"{key[0]} on {key[1]}, {key[2]}: " + ("not trained" if row is None else row.state)
    if value is None or goodness is None:
        return f'<rect class="empty" {place}><title>{escape(tip)}</title></rect>'
    opacity = 0.1 + 0.85 * goodness
    framed = ' stroke="var(--ink)" stroke-width="1.6"' if value == found.best(key[1]) else ""
    text = metric_text(found.metric, value)
    kind = "count on" if opacity > 0.55 else "count"
    at = f'x="{x + wide / 2:.1f}" y="{y + _HIGH / 2 + 4:.1f}"'
    return (
        f'<rect {place} style="fill:var(--right)" fill-opacity="{opacity:.2f}"{framed}>'
        f"<title>{escape(f'{tip}, {text}')}</title></rect>"
        f'<text class="{kind}" {at} text-anchor="middle">{text}</text>'
    )
