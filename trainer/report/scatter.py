"""A dot for each member of a sweep: what came out against a setting, as inline SVG."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from html import escape
from typing import Any

from trainer.report.svg import BOTTOM, LEFT, RIGHT, SIZE, TOP, log_ticks, number, shortened, ticks
from trainer.rundir.sweep import as_text

_WIDE = 20  # a factor between the largest and the smallest value from which an axis is logarithmic
_WORDS = 12  # different values of a setting that still have a place each


@dataclass(frozen=True)
class Dot:
    """One member: a setting's value, a result, and what is said when it is pointed at."""

    x: Any
    y: float
    tip: str


def scatter(dots: Sequence[Dot], *, title: str, x_label: str, y_percent: bool = False) -> str:
    """A chart; empty text when there is nothing to compare: fewer than two values of the setting.

    Numbers have an axis, which is logarithmic where they span more than a factor of twenty; other values stand side by side.
    """
    dots = [dot for dot in dots if math.isfinite(dot.y)]
    words = list(dict.fromkeys(as_text(dot.x) for dot in sorted(dots, key=lambda dot: _order(dot.x))))
    if len(words) < 2:
        return ""
    width, height = SIZE
    numbers = all(isinstance(dot.x, int | float) and not isinstance(dot.x, bool) for dot in dots)
    if not numbers and len(words) > 4 * _WORDS:
        return ""
    place, marks = _numbers([float(dot.x) for dot in dots]) if numbers else _words(words)
    low, high = min(dot.y for dot in dots), max(dot.y for dot in dots)
    pad = (high - low) * 0.06 or abs(high) * 0.1 or 1.0
    low, high = low - pad, high + pad

    def px(share: float) -> float:
        return LEFT + (width - LEFT - RIGHT) * (0.04 + 0.92 * share)

    def py(y: float) -> float:
        return TOP + (height - TOP - BOTTOM) * (1 - (y - low) / (high - low))

    parts = [f'<svg viewBox="0 0 {width} {height}" role="img" aria-label="{escape(title)}">']
    for value in ticks(low, high, about=height // 60):
        label = f"{value * 100:.4g}%" if y_percent else number(value)
        parts.append(f'<path class="grid" d="M{LEFT} {py(value):.1f}H{width - RIGHT}"/>')
        parts.append(f'<text class="tick" x="{LEFT - 8}" y="{py(value) + 4:.1f}" text-anchor="end">{label}</text>')
    for share, label in marks:
        parts.append(f'<path class="grid" d="M{px(share):.1f} {height - BOTTOM}v5"/>')
        at = f'x="{px(share):.1f}" y="{height - BOTTOM + 19}"'
        parts.append(f'<text class="tick" {at} text-anchor="middle">{escape(label)}</text>')
    parts.append(f'<path class="axis" d="M{LEFT} {height - BOTTOM}H{width - RIGHT}"/>')
    parts.append(
        f'<text class="tick" x="{(LEFT + width - RIGHT) / 2:.0f}" y="{height - 5}" text-anchor="middle">{escape(x_label)}</text>'
    )
    for dot in dots:
        at = f'cx="{px(place(dot.x)):.1f}" cy="{py(dot.y):.1f}"'
        parts.append(f'<circle class="dot" style="fill:var(--s0)" {at} r="4"><title>{escape(dot.tip)}</title></circle>')
    return "".join([*parts, "</svg>"])


def _numbers(values: Sequence[float]) -> tuple[Callable[[Any], float], list[tuple[float, str]]]:
    """Where a number stands on the axis, from 0 to 1, and the axis's marks."""
    low, high = min(values), max(values)
    if low > 0 and high / low > _WIDE:
        span = math.log(high / low)
        return (
            lambda value: math.log(value / low) / span,
            [(math.log(mark / low) / span, number(mark)) for mark in log_ticks(low, high)],
        )
    return lambda value: (value - low) / (high - low), [((mark - low) / (high - low), number(mark)) for mark in ticks(low, high)]


def _words(words: Sequence[str]) -> tuple[Callable[[Any], float], list[tuple[float, str]]]:
    places = {word: (index + 0.5) / len(words) for index, word in enumerate(words)}
    shown = [(places[word], shortened(word, max(6, 72 // len(words)))) for word in words] if len(words) <= _WORDS else []
    return lambda value: places[as_text(value)], shown


def _order(value: Any) -> tuple[bool, float, str]:
    """Numbers by size, then words."""
    if isinstance(value, int | float) and not isinstance(value, bool):
        return False, float(value), ""
    return True, 0.0, as_text(value)
