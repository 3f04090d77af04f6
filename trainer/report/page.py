"""The page: what each part shows and in which order."""

from __future__ import annotations

import math
import time
from collections.abc import Sequence
from html import escape
from typing import Any

from trainer.report.curves import curves
from trainer.report.evaluation import evaluation
from trainer.report.read import Json, View, flat
from trainer.report.style import CSS
from trainer.rundir.metric import is_share, leading, lower_is_better
from trainer.track.console import duration

_TILES = 5  # metrics beside the best


def page(views: Sequence[View]) -> str:
    """The whole HTML text."""
    many = len(views) > 1
    title = " · ".join(v.label for v in views) if len(views) <= 3 else f"{len(views)} runs"
    body = [_header(views[0]) if not many else _comparison(views), curves(views)]
    for view in views:
        body.append(evaluation(view, heading=view.label if many else ""))
    body.append("<h2>Facts</h2>")
    body += [_facts(view, many) for view in views]
    return document(title, "".join(body))


def document(title: str, body: str) -> str:
    """A page that needs nothing but itself."""
    made = time.strftime("%Y-%m-%d %H:%M")
    return (
        '<!doctype html>\n<html lang="en"><head><meta charset="utf-8">'
        '<meta name="viewport" content="width=device-width,initial-scale=1">'
        "<meta http-equiv=\"Content-Security-Policy\" content=\"default-src 'none';style-src 'unsafe-inline';img-src data:\">"
        f"<title>{escape(title)}</title><style>{CSS}</style></head><body><main>{body}"
        f'<p class="soft small" style="margin-top:36px">Written by graft on {made} from the run folders alone.</p>'
        "</main></body></html>\n"
    )


def metric_text(key: str, value: float | None) -> str:
    """`97.3%` for shares (accuracy, F1 and the like), four significant digits for the rest, a dash for none."""
    if value is None or not math.isfinite(value):
        return "–"
    return f"{value:.1%}" if is_share(key) else f"{value:.4g}"


def _name(key: str) -> str:
    return key.removeprefix("val/").replace("_", " ")


def _subtitle(view: View) -> str:
    config = view.config
    weights = config["model"]["weights"]
    start = "from scratch" if weights == "none" else f"from {weights.rsplit('/', 1)[-1]}"
    parts = [config["model"]["source"].rsplit("/", 1)[-1], start, f"strategy {config['strategy']['kind']}"]
    optimizer = config["optimizer"]
    parts.append(f"{optimizer['kind']} at {optimizer['lr']:g}")
    parts.append(f"batch {config['train']['global_batch']}")
    return " · ".join(parts)


def _badge(view: View) -> str:
    state = view.state()
    return f'<span class="badge {escape(state.split()[0])}">{escape(state)}</span>'


def _header(view: View) -> str:
    summary = view.summary
    tiles: list[tuple[str, str]] = []
    best = view.best()
    if best:
        value, point = best
        tiles.append((metric_text(view.best_metric, value), f"best {_name(view.best_metric)}, at step {point.get('step', 0):,}"))
    for key in leading(view.measured())[:_TILES]:
        if key != view.best_metric and view.last(key) is not None:
            tiles.append((metric_text(key, view.last(key)), f"last validation {_name(key)}"))
    if best is None and view.last("train/loss") is not None:
        tiles.append((metric_text("train/loss", view.last("train/loss")), "last training loss"))
    samples, step, epoch = view.last("samples"), view.last("step"), view.last("epoch")
    if samples is not None:
        tiles.append((f"{int(samples):,}", f"samples, {epoch or 0:.3g} epochs"))
        tiles.append((f"{int(step or 0):,}", "steps"))
    if isinstance(summary.get("productive_seconds"), int | float):
        tiles.append((duration(summary["productive_seconds"]), "of training"))
    if isinstance(summary.get("peak_bytes"), int):
        tiles.append((f"{summary['peak_bytes'] / 2**20:,.0f} MiB", "of memory at most"))
    if isinstance(summary.get("did_not_fit"), list):
        tiles.append((str(summary.get("micro_batch")), "samples at a time: as many as the memory holds"))
    stalls, shadows = (view.series(f"checkpoint/{name}")[1] for name in ("stall_s", "shadow"))
    if stalls:
        slower = f"; steps {max(shadows):.2f} times as long while it is written" if shadows else ""
        tiles.append((f"{1000 * max(stalls):,.0f} ms", f"held up by a checkpoint at most{slower}"))
    attempts = _attempts(view)
    if attempts:
        ettr = summary.get("ettr")
        share = f", {ettr:.0%} of the time productive" if isinstance(ettr, int | float) else ""
        tiles.append((str(attempts), ("attempt" if attempts == 1 else "attempts") + share))
    forgotten = (summary.get("forgetting") or {}).get("forgetting")
    if isinstance(forgotten, int | float):
        tiles.append((f"{forgotten:+.1%}", f"of the accuracy on its source task forgotten ({summary['forgetting']['data']})"))
    learning = (summary.get("parameters") or {}).get("learning")
    if isinstance(learning, int):
        frozen = summary["parameters"].get("frozen", 0)
        tiles.append((_millions(learning), f"parameters learn, {_millions(frozen)} frozen"))
    boxes = "".join(
        f'<div class="tile{" lead" if i == 0 else ""}"><b>{escape(value)}</b><span>{escape(label)}</span></div>'
        for i, (value, label) in enumerate(tiles)
    )
    note = f'<p class="soft small">{escape(view.marker.reason)}</p>' if view.marker and view.marker.state == "FAILED" else ""
    head = f'<h1>{escape(view.label)}{_badge(view)}</h1><p class="soft">{escape(_subtitle(view))}</p>'
    return f'{head}{note}<div class="tiles">{boxes}</div>'


def _attempts(view: View) -> int:
    return int(view.summary.get("attempts") or sum(a.get("event") == "start" for a in view.attempts))


def _millions(count: int) -> str:
    return f"{count / 1e6:.3g} M" if count >= 1_000_000 else f"{count:,}"


def _comparison(views: Sequence[View]) -> str:
    """A table of several runs; the best value of a column stands out when there is one."""
    keys = list(dict.fromkeys([v.best_metric for v in views] + leading(key for v in views for key in v.measured())))
    keys = [k for k in keys if any(v.last(k) is not None for v in views)]
    rows: list[list[str]] = []
    measured: list[list[float | None]] = []
    for view in views:
        best = view.best()
        at_best: Json = best[1] if best else {}
        values = [at_best.get(k) for k in keys]
        measured.append(values)
        learning = (view.summary.get("parameters") or {}).get("learning")
        seconds = view.summary.get("productive_seconds")
        rows.append([
            f"{int(view.last('samples') or 0):,}",
            duration(seconds) if isinstance(seconds, int | float) else "–",
            _millions(learning) if isinstance(learning, int) else "–",
            str(_attempts(view) or "–"),
        ])  # fmt: skip
    leaders = []
    for column, key in enumerate(keys):
        known = [value for m in measured if isinstance(value := m[column], int | float)]
        lower = lower_is_better(key)
        leaders.append((min if lower else max)(known) if len(known) > 1 and len(set(known)) > 1 else None)
    head = "".join(f"<th>{escape(h)}</th>" for h in [*map(_name, keys), "samples", "training", "learning", "attempts"])
    lines = []
    for number, (view, values, rest) in enumerate(zip(views, measured, rows, strict=True)):
        swatch = f'<i style="border-color:var(--s{number % 8})"></i>'
        cells = "".join(
            f'<td class="{"best" if v is not None and v == leader else ""}">{metric_text(k, v)}</td>'
            for k, v, leader in zip(keys, values, leaders, strict=True)
        )
        cells += "".join(f"<td>{escape(c)}</td>" for c in rest)
        name = f'<span class="legend" style="display:inline;font-size:14px;color:inherit">{swatch}{escape(view.label)}</span>'
        lines.append(f'<tr><td>{name}<br><span class="soft small">{escape(_subtitle(view))}</span></td>{cells}</tr>')
    return (
        f'<h1>{len(views)} runs compared</h1><p class="soft">Each at its best evaluation.</p>'
        f'<div class="card wide"><table><tr><th>run</th>{head}</tr>{"".join(lines)}</table></div>'
    )


def _table(rows: Sequence[tuple[str, Any]]) -> str:
    return (
        '<table class="facts">'
        + "".join(f"<tr><td>{escape(str(k))}</td><td>{escape(str(v))}</td></tr>" for k, v in rows)
        + "</table>"
    )


def _facts(view: View, many: bool) -> str:
    manifest = dict(view.manifest)
    rows: list[tuple[str, str]] = [("folder", str(view.folder.path))]
    data = manifest.pop("data", None) or {}
    for part, facts in data.items():
        if isinstance(facts, dict):
            classes, targets = facts.get("classes") or {}, facts.get("targets") or []
            said = ", ".join(str(target["name"]) for target in targets) or f"{len(classes)} classes"
            rows.append((f"{part} data", f"{facts.get('samples')} samples: {said}"))
            rows.append((f"{part} fingerprint", str(facts.get("fingerprint"))))
    rows += flat(manifest)
    attempts = [
        (f"attempt {a.get('attempt')}, {a.get('event')}", _event(a)) for a in view.attempts if a.get("event") in ("start", "end")
    ]
    name = f"{escape(view.label)}: " if many else ""
    blocks = [("how it was made", _table(rows)), ("settings (run.yaml)", f"<pre>{escape(view.text)}</pre>")]
    if view.summary:
        blocks.append(("summary", _table(flat(view.summary))))
    if attempts:
        blocks.append((f"attempts ({_attempts(view)})", _table(attempts)))
    return "".join(f"<details><summary>{name}{title}</summary><div>{inner}</div></details>" for title, inner in blocks)


def _event(event: Json) -> str:
    at = event.get("time")
    parts = [time.strftime("%Y-%m-%d %H:%M:%S", time.localtime(at)) if isinstance(at, int | float) else ""]
    parts += [f"{k} {v}" for k, v in event.items() if k not in ("attempt", "event", "time") and v not in ("", None)]
    return " · ".join(filter(None, parts))
