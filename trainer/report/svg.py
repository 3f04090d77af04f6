"""Line charts and a confusion heat map as inline SVG. Colours are CSS variables of the page, so both themes fit."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from html import escape

SIZE = (540, 300)
LEFT, RIGHT, TOP, BOTTOM = 58, 14, 14, 40
MAX_POINTS = 400


@dataclass(frozen=True)
class Series:
    """One line: its points (not finite ones are gaps), the number of its colour, and how heavily it is drawn."""

    name: str
    x: Sequence[float]
    y: Sequence[float]
    colour: int
    faint: bool = False
    dots: bool = False
    dashed: bool = False


def ticks(low: float, high: float, about: int = 5) -> list[float]:
    """Round values (1, 2 or 5 times a power of ten apart) that cover [low, high] from the inside."""
    if high <= low:
        return [low]
    rough = (high - low) / max(1, about)
    power = 10.0 ** math.floor(math.log10(rough))
    step = next(power * m for m in (1, 2, 5, 10) if power * m >= rough * 0.999)
    first = math.ceil(low / step - 1e-9)
    last = math.floor(high / step + 1e-9)
    return [0.0 if i == 0 else i * step for i in range(first, last + 1)]


def log_ticks(low: float, high: float) -> list[float]:
    """Powers of ten in [low, high], with 2 and 5 times them while they are few."""
    decades = range(math.floor(math.log10(low)) - 1, math.ceil(math.log10(high)) + 1)
    for steps in ((1, 2, 5), (1, 3), (1,)):
        found = [m * 10.0**d for d in decades for m in steps if low * 0.999 <= m * 10.0**d <= high * 1.001]
        if len(found) <= 8:
            return found
    return found[:: math.ceil(len(found) / 8)]


def number(value: float) -> str:
    """A short label: 1.2k, 3M, 0.05, 1e-5."""
    size = abs(value)
    for limit, mark in ((1e9, "G"), (1e6, "M"), (1e3, "k")):
        if size >= limit:
            return f"{value / limit:.4g}{mark}"
    if size != 0 and size < 1e-4:
        mantissa, _, exponent = f"{value:.2e}".partition("e")
        return f"{float(mantissa):g}e{int(exponent)}"
    return f"{value:.4g}"


def thin(x: Sequence[float], y: Sequence[float]) -> list[tuple[float, float]]:
    """At most about 400 points that keep every bucket's lowest and highest."""
    points = [(a, b) for a, b in zip(x, y, strict=True) if math.isfinite(b)]
    if len(points) <= MAX_POINTS:
        return points
    size = len(points) / (MAX_POINTS / 2)
    kept: list[tuple[float, float]] = [points[0]]
    for bucket in range(MAX_POINTS // 2):
        part = points[int(bucket * size) : int((bucket + 1) * size)]
        if part:
            ends = {min(part, key=lambda p: p[1]), max(part, key=lambda p: p[1])}
            kept += sorted(ends)
    return [*kept, points[-1]]


def _scale(series: Sequence[Series], percent: bool) -> tuple[float, float, bool]:
    """The range of y and whether it is logarithmic: when the values span more than a factor of twenty."""
    values = [v for s in series for v in s.y if math.isfinite(v)]
    low, high = min(values), max(values)
    if percent:
        step = 0.1 if low < 0.8 else 0.02
        return max(0.0, math.floor(low / step + 1e-9) * step), 1.0, False
    if low > 0 and high / low > 20:
        return low / 1.15, high * 1.15, True
    pad = (high - low) * 0.06 or abs(high) * 0.1 or 1.0
    return (0.0 if 0 <= low < 0.35 * high else low - pad), high + pad, False


def line_chart(
    series: Sequence[Series], *, title: str, y_percent: bool = False, size: tuple[int, int] = SIZE, x_label: str = "samples"
) -> str:
    """A chart against samples (or what `x_label` says); empty text when no series has a point."""
    width, height = size
    drawn = [s for s in series if any(math.isfinite(v) for v in s.y)]
    if not drawn:
        return ""
    low, high, logarithmic = _scale(drawn, y_percent)
    end = max(max(s.x) for s in drawn) or 1.0
    inner, tall = width - LEFT - RIGHT, height - TOP - BOTTOM

    def px(x: float) -> float:
        return LEFT + inner * x / end

    def py(y: float) -> float:
        share = math.log(y / low) / math.log(high / low) if logarithmic else (y - low) / (high - low)
        return TOP + tall * (1 - share)

    parts = [f'<svg viewBox="0 0 {width} {height}" role="img" aria-label="{escape(title)}">']
    for value in log_ticks(low, high) if logarithmic else ticks(low, high, about=height // 60):
        y = py(value)
        label = f"{value * 100:.4g}%" if y_percent else number(value)
        parts.append(f'<path class="grid" d="M{LEFT} {y:.1f}H{width - RIGHT}"/>')
        parts.append(f'<text class="tick" x="{LEFT - 8}" y="{y + 4:.1f}" text-anchor="end">{label}</text>')
    for value in ticks(0, end, about=width // 100):
        anchor = "end" if px(value) > width - RIGHT - 12 else "middle"
        parts.append(f'<path class="grid" d="M{px(value):.1f} {height - BOTTOM}v5"/>')
        text = f'<text class="tick" x="{px(value):.1f}" y="{height - BOTTOM + 19}" text-anchor="{anchor}">{number(value)}</text>'
        parts.append(text)
    parts.append(f'<path class="axis" d="M{LEFT} {height - BOTTOM}H{width - RIGHT}"/>')
    parts.append(f'<text class="tick" x="{LEFT + inner / 2:.0f}" y="{height - 5}" text-anchor="middle">{escape(x_label)}</text>')
    for line in drawn:
        points = [(px(x), py(y)) for x, y in thin(line.x, line.y)]
        style = f'style="stroke:var(--s{line.colour % 8})"'
        kind = "line faint" if line.faint else "line dashed" if line.dashed else "line"
        path = "M" + "L".join(f"{x:.1f} {y:.1f}" for x, y in points)
        if len(points) > 1:
            parts.append(f'<path class="{kind}" {style} d="{path}"><title>{escape(line.name)}</title></path>')
        if (line.dots and len(points) <= 40) or len(points) == 1:
            fill = f'style="fill:var(--s{line.colour % 8})"'
            kept = [(x, y) for x, y in zip(line.x, line.y, strict=True) if math.isfinite(y)]
            for (x, y), (cx, cy) in zip(kept, points, strict=True):
                shown = f"{y * 100:.2f}%" if y_percent else f"{y:.4g}"
                tip = f"<title>{escape(line.name)}: {shown} at {number(x)} {escape(x_label)}</title>"
                parts.append(f'<circle class="dot" {fill} cx="{cx:.1f}" cy="{cy:.1f}" r="3">{tip}</circle>')
    parts.append("</svg>")
    return "".join(parts)


def shortened(text: str, length: int) -> str:
    """The text, cut in the middle, where names differ least."""
    if len(text) <= length:
        return text
    head = (length - 1) * 2 // 3
    return f"{text[:head]}…{text[len(text) - (length - 1 - head) :]}"


def meter(value: object) -> str:
    """A cell of a table with a share and its bar; a dash for none."""
    if not isinstance(value, int | float):
        return "<td>–</td>"
    low = ' class="low"' if value < 0.5 else ""
    return f'<td><span class="meter"><i{low} style="width:{max(0.0, min(1.0, value)):.0%}"></i></span>{value:.1%}</td>'


def heat_map(matrix: Sequence[Sequence[int]], classes: Sequence[str], *, width: int = 680) -> str:
    """A confusion matrix for up to 100 classes: rows the truth; blue what is right, red what is wrong, by share of the row."""
    n = len(matrix)
    names = [shortened(name, 18) for name in classes]
    size = max(6.5, min(11.5, 900 / n))
    edge = min(140.0, 10 + max(len(name) for name in names) * size * 0.6)
    cell = max(7.5, min(56.0, (width - edge) / n))
    across, down = edge + n * cell + 1, edge + n * cell + 1
    upright = max(len(name) for name in names) * size * 0.6 < cell - 4
    top = 26.0 if upright else edge
    down = top + n * cell + 1
    parts = [
        f'<svg class="heat" viewBox="0 0 {across:.0f} {down:.0f}" style="max-width:{across:.0f}px" role="img" '
        f'aria-label="Confusion matrix" font-size="{size:.1f}">'
    ]
    for i, name in enumerate(names):
        y = top + (i + 0.5) * cell + size * 0.35
        x = edge + (i + 0.5) * cell
        parts.append(f'<text class="tick" x="{edge - 7:.1f}" y="{y:.1f}" text-anchor="end">{escape(name)}</text>')
        if upright:
            parts.append(f'<text class="tick" x="{x:.1f}" y="{top - 8}" text-anchor="middle">{escape(name)}</text>')
        else:
            place = f'transform="translate({x + size * 0.35:.1f} {top - 6:.1f}) rotate(-90)"'
            parts.append(f'<text class="tick" {place}>{escape(name)}</text>')
    parts.append(f'<rect class="empty" x="{edge:.1f}" y="{top:.1f}" width="{n * cell:.1f}" height="{n * cell:.1f}"/>')
    for row, counts in enumerate(matrix):
        total = sum(counts) or 1
        for column, count in enumerate(counts):
            if count == 0:
                continue
            share = count / total
            x, y = edge + column * cell, top + row * cell
            colour = "var(--right)" if row == column else "var(--wrong)"
            opacity = 0.12 + 0.88 * (share if row == column else math.sqrt(share))
            gap = 1 if cell > 12 else 0
            tip = f"{classes[row]} seen as {classes[column]}: {count} of {total} ({share:.1%})"
            parts.append(
                f'<rect x="{x:.1f}" y="{y:.1f}" width="{cell - gap:.1f}" height="{cell - gap:.1f}" style="fill:{colour}" '
                f'fill-opacity="{opacity:.2f}"><title>{escape(tip)}</title></rect>'
            )
            if cell >= 20:
                kind = "count on" if opacity > 0.55 else "count"
                fits = min(12.0, (cell - 4) / max(1, len(str(count))) / 0.6)
                at = f'x="{x + cell / 2:.1f}" y="{y + cell / 2 + fits * 0.35:.1f}" font-size="{fits:.1f}"'
                parts.append(f'<text class="{kind}" {at} text-anchor="middle">{count}</text>')
    parts.append("</svg>")
    return "".join(parts)
