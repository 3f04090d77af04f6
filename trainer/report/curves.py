"""The curves of a run, or of several laid over one another."""

from __future__ import annotations

import math
from collections.abc import Sequence
from html import escape

from trainer.report.losses import parts
from trainer.report.read import View
from trainer.report.svg import SIZE, Series, line_chart
from trainer.rundir.metric import distance, is_share, leading, word

SMOOTH_FROM = 60
_NAMES = {
    "f1": "F1", "micro_f1": "F1 over all answers", "top5": "top 5", "map": "mean average precision", "exact": "nothing wrong",
    "mae": "mean absolute error", "rmse": "root mean square error", "psnr": "PSNR, dB", "ssim": "SSIM",
}  # fmt: skip
_LIKENESS = ("psnr", "ssim")


def smoothed(values: Sequence[float]) -> list[float]:
    """An exponential average over about 3% of the points, unbiased at its start (as in Adam); gaps stay gaps."""
    strength = 1 - 1 / max(3.0, 0.03 * len(values))
    total = weight = 0.0
    result = []
    for value in values:
        if math.isfinite(value):
            total = strength * total + (1 - strength) * value
            weight = strength * weight + (1 - strength)
        result.append(total / weight if math.isfinite(value) else math.nan)
    return result


def curves(views: Sequence[View]) -> str:
    many = len(views) > 1
    loss: list[Series] = []
    shares: list[Series] = []
    errors: list[Series] = []
    distances: list[Series] = []
    likeness: list[Series] = []
    rate: list[Series] = []
    noisy = False
    for number, view in enumerate(views):
        name = view.label + " " if many else ""
        x, y = view.series("train/loss")
        if len(x) >= SMOOTH_FROM:
            noisy = True
            loss.append(Series(f"{name}train", x, y, number, faint=True))
            y = smoothed(y)
        loss.append(Series(f"{name}train", x, y, number, dashed=many))
        colour = number if many else 1
        loss.append(Series(f"{name}validation", *view.series("val/loss"), colour, dots=True))
        measured = _shown(view, many=many)
        for place, key in enumerate(measured):
            line = Series(f"{name}{_name(key)}", *view.series(key), number if many else place + 1, dots=True)
            if not (word(key) == "top5" and all(v >= 0.9995 for v in line.y)):
                (shares if is_share(key) else errors).append(line)
        for place, key in enumerate(_distances(view)[: 1 if many else None]):
            distances.append(Series(f"{name}{_name(key)}", *view.series(key), number if many else place + 1, dots=True))
        for key in _likeness(view)[:1]:
            likeness.append(Series(f"{name}{_name(key)}", *view.series(key), number if many else 1, dots=True))
        rate.append(Series(f"{name}learning rate", *view.series("lr"), number))
    runs = [(v.label, i, False) for i, v in enumerate(views)] if many else None
    faint = "; faint: as measured" if noisy else ""
    cards = [
        _card("Loss" + (f" <span class='soft'>(dashed: training{faint})</span>" if many else ""), loss, runs),
        _card("Validation", shares, runs, percent=True),
        _card("Validation errors", errors, runs),
        _card("Likeness to the targets", likeness, runs),
        _card("Distance of what it makes from the data", distances, runs),
    ]
    if not many:
        cards += [_card("Losses, each by itself", parts(views[0], "loss"), None)]
        cards += [_card("What each loss weighs", parts(views[0], "weight"), None)]
    drawn = [card for card in cards if card]
    if not drawn:
        return ""
    below = _card("Learning rate", rate, runs if many else [], size=(1100, 190) if len(drawn) % 2 == 0 else SIZE)
    if len(drawn) % 2 == 0:
        return f'<h2>Curves</h2><div class="stack"><div class="two">{"".join(drawn)}</div>{below}</div>'
    return f'<h2>Curves</h2><div class="two">{"".join(drawn)}{below}</div>'


def _shown(view: View, *, many: bool) -> list[str]:
    """The metrics that are drawn: of several runs the first, of one task all shares and errors, of several heads the leading."""
    first = [metric for metric in leading(view.measured()) if metric != "val/loss" and word(metric) not in _LIKENESS]
    if many:
        return first[:1]
    if view.config["task"]["kind"] == "multi":
        return first
    return [metric for metric in view.measured() if word(metric) in ("accuracy", "f1", "top5", "map", "exact", "mae", "rmse")]


def _likeness(view: View) -> list[str]:
    """How near pictures are to what they should be, in decibels first, which have a scale of their own."""
    return [metric for kind in _LIKENESS for metric in view.measured() if word(metric) == kind]


def _distances(view: View) -> list[str]:
    """Those of one kind, as each has a scale of its own: Fréchet's, else the kernels', else LPIPS."""
    for kinds in (("fid", "fd"), ("kid", "kd"), ("lpips",)):
        found = [metric for metric in view.measured() if distance(metric) in kinds]
        if found:
            return found
    return []


def _name(metric: str) -> str:
    name = metric.removeprefix("val/")
    return _NAMES.get(name, name.replace("_", " "))


def _card(
    title: str,
    series: list[Series],
    legend: list[tuple[str, int, bool]] | None,
    *,
    percent: bool = False,
    size: tuple[int, int] = SIZE,
) -> str:
    chart = line_chart(series, title=title.split(" <")[0], y_percent=percent, size=size)
    if not chart:
        return ""
    shown = [(s.name, s.colour, s.dashed) for s in series if not s.faint and len(s.x)] if legend is None else legend
    marks = "".join(
        f'<span><i {"class=dash " if dash else ""}style="border-color:var(--s{colour % 8})"></i>{escape(name)}</span>'
        for name, colour, dash in shown
    )
    bar = f'<div class="legend">{marks}</div>' if marks else ""
    return f'<div class="card"><h3>{title}</h3>{bar}{chart}</div>'
