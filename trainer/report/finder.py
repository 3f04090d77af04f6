"""The curve of the learning-rate finder as an SVG file of its own."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from html import escape

from trainer.report.svg import log_ticks, number, ticks

_WIDE, _HIGH, _LEFT, _RIGHT, _TOP, _BOTTOM = 720, 420, 66, 20, 24, 52
_OPEN = f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {_WIDE} {_HIGH}"'
_COLOURS = {"steepest": "#d9692a", "valley": "#2d8a57", "minimum": "#8a4fbf"}


def finder_chart(rates: Sequence[float], losses: Sequence[float], suggestions: Mapping[str, float]) -> str:
    """Smoothed loss against the rate (logarithmic), the suggestions marked; a diverging end is cut off above."""
    if len(rates) < 2:
        return f'{_OPEN}><text x="20" y="40">too few steps</text></svg>\n'
    low, lowest = min(rates), min(losses)
    high, highest = max(rates), max(losses[: max(2, len(losses) // 2)])
    top = min(max(losses), highest + 0.6 * (highest - lowest)) if highest > lowest else max(losses)
    top = top if top > lowest else lowest + max(1e-9, abs(lowest))

    def px(rate: float) -> float:
        return _LEFT + (_WIDE - _LEFT - _RIGHT) * math.log(rate / low) / math.log(high / low)

    def py(loss: float) -> float:
        return _TOP + (_HIGH - _TOP - _BOTTOM) * (1 - (min(loss, top) - lowest) / (top - lowest))

    parts = [
        f'{_OPEN} font-family="system-ui, sans-serif" font-size="13">',
        f'<rect width="{_WIDE}" height="{_HIGH}" fill="#fff"/>',
    ]
    for value in ticks(lowest, top):
        parts.append(f'<path stroke="#e4e5e9" d="M{_LEFT} {py(value):.1f}H{_WIDE - _RIGHT}"/>')
        parts.append(f'<text x="{_LEFT - 8}" y="{py(value) + 4:.1f}" text-anchor="end" fill="#646b78">{number(value)}</text>')
    for value in log_ticks(low, high):
        parts.append(f'<path stroke="#e4e5e9" d="M{px(value):.1f} {_TOP}V{_HIGH - _BOTTOM}"/>')
        at = f'x="{px(value):.1f}" y="{_HIGH - _BOTTOM + 20}"'
        parts.append(f'<text {at} text-anchor="middle" fill="#646b78">{escape(number(value))}</text>')
    line = "L".join(f"{px(rate):.1f} {py(loss):.1f}" for rate, loss in zip(rates, losses, strict=True))
    parts.append(f'<path fill="none" stroke="#2563a8" stroke-width="2" d="M{line}"/>')
    for row, (name, rate) in enumerate(suggestions.items()):
        if not low <= rate <= high:
            continue
        nearest = min(range(len(rates)), key=lambda i: abs(math.log(rates[i] / rate)))
        colour, x, y = _COLOURS.get(name, "#1d2026"), px(rate), py(losses[nearest])
        parts.append(f'<path stroke="{colour}" stroke-dasharray="4 4" d="M{x:.1f} {_TOP + 14 * row}V{_HIGH - _BOTTOM}"/>')
        parts.append(f'<circle cx="{x:.1f}" cy="{y:.1f}" r="5" fill="{colour}"/>')
        anchor, shift = ("end", -6) if x > _WIDE * 0.7 else ("start", 6)
        at = f'x="{x + shift:.1f}" y="{_TOP + 14 * row + 10}"'
        parts.append(f'<text {at} text-anchor="{anchor}" fill="{colour}">{escape(name)} {rate:.2e}</text>')
    middle = (_LEFT + _WIDE - _RIGHT) / 2
    parts.append(f'<text x="{middle:.0f}" y="{_HIGH - 10}" text-anchor="middle" fill="#1d2026">learning rate</text>')
    parts.append(f'<text x="14" y="{_TOP - 8}" fill="#1d2026">loss, smoothed</text></svg>\n')
    return "".join(parts)
