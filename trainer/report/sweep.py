"""The page of a sweep: its members, the best first, and the best value of each against every setting that was searched."""

from __future__ import annotations

from collections.abc import Sequence
from html import escape

from trainer.report.labels import label_curves
from trainer.report.matrix import heat_maps
from trainer.report.page import document, metric_text
from trainer.report.scatter import Dot, scatter
from trainer.rundir.matrix import matrix
from trainer.rundir.metric import lower_is_better
from trainer.rundir.sweep import Row, SweepDir, as_text, keys
from trainer.track.console import duration

_SHOWN = 200  # rows of the table; results.csv has all


def sweep_page(folder: SweepDir, metric: str, rows: Sequence[Row]) -> str:
    """The whole HTML text. `rows`: the best first."""
    settings = keys(list(rows))
    found = matrix(metric, rows)
    drawn = heat_maps(found) if found is not None else label_curves(metric, rows) + _charts(metric, rows, settings)
    body = [_header(folder, metric, rows, settings), drawn, _table(metric, rows, settings)]
    text = folder.config.read_text(encoding="utf-8")
    body.append(
        f"<h2>Facts</h2><details><summary>the sweep file, resolved</summary><div><pre>{escape(text)}</pre></div></details>"
    )
    return document(folder.name, "".join(body))


def _header(folder: SweepDir, metric: str, rows: Sequence[Row], settings: Sequence[str]) -> str:
    states: dict[str, int] = {}
    for row in rows:
        states[row.state] = states.get(row.state, 0) + 1
    tiles = [(str(len(rows)), "members: " + ", ".join(f"{count} {state}" for state, count in states.items()))]
    best = rows[0] if rows and rows[0].best is not None else None
    if best is not None:
        chosen = ", ".join(f"{key} {_cell(best.settings[key])}" for key in settings if key in best.settings)
        tiles.insert(0, (metric_text(metric, best.best), f"best {metric.removeprefix('val/')}: {chosen}"))
    trained = sum(row.seconds or 0.0 for row in rows)
    if trained:
        tiles.append((duration(trained), "of training in all"))
    kinds = ["tile lead" if best is not None else "tile", *["tile"] * (len(tiles) - 1)]
    boxes = "".join(
        f'<div class="{kind}"><b>{escape(value)}</b><span>{escape(label)}</span></div>'
        for kind, (value, label) in zip(kinds, tiles, strict=True)
    )
    way = "lowest" if lower_is_better(metric) else "highest"
    about = f"A sweep over {', '.join(settings)}; the {way} {metric} is the best."
    return f'<h1>{escape(folder.name)}</h1><p class="soft">{escape(about)}</p><div class="tiles">{boxes}</div>'


def _charts(metric: str, rows: Sequence[Row], settings: Sequence[str]) -> str:
    """One chart for each setting that has more than one value among the members with a result."""
    share = metric_text(metric, 0.5).endswith("%")
    cards = []
    for key in settings:
        dots = [
            Dot(row.settings[key], row.best, f"{row.name}: {_cell(row.settings[key])}, {metric_text(metric, row.best)}")
            for row in reversed(rows)  # the best is drawn last, above the others
            if row.best is not None and key in row.settings
        ]
        chart = scatter(dots, title=f"{metric} against {key}", x_label=key, y_percent=share)
        if chart:
            cards.append(f'<div class="card"><h3>{escape(key)}</h3>{chart}</div>')
    return (
        f'<h2>Best {escape(metric.removeprefix("val/"))} by setting</h2><div class="two">{"".join(cards)}</div>' if cards else ""
    )


def _table(metric: str, rows: Sequence[Row], settings: Sequence[str]) -> str:
    metrics = [key for key in dict.fromkeys(key for row in rows for key in row.metrics) if key != metric]
    head = "".join(f"<th>{escape(key)}</th>" for key in [*settings, f"best {metric}", *metrics, "state", "steps", "training"])
    lines = []
    for index, row in enumerate(rows[:_SHOWN]):
        cells = [escape(_cell(row.settings[key])) if key in row.settings else "" for key in settings]
        best = f'<td class="{"best" if index == 0 and row.best is not None else ""}">{metric_text(metric, row.best)}</td>'
        rest = [metric_text(key, row.metrics.get(key)) for key in metrics]
        rest += [escape(row.state), f"{row.step:,}", duration(row.seconds) if row.seconds is not None else "–"]
        before, after = ("".join(f"<td>{cell}</td>" for cell in part) for part in (cells, rest))
        lines.append(f"<tr><td>{escape(row.name)}</td>{before}{best}{after}</tr>")
    more = f'<p class="soft small">{len(rows) - _SHOWN:,} more are in results.csv.</p>' if len(rows) > _SHOWN else ""
    table = f"<table><tr><th>member</th>{head}</tr>{''.join(lines)}</table>"
    return f'<h2>Members</h2><div class="card wide scroll">{table}</div>{more}'


def _cell(value: object) -> str:
    return f"{value:.4g}" if isinstance(value, float) else as_text(value)
