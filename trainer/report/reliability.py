"""The diagram of reliability: how often the answers of a confidence are right."""

from __future__ import annotations

from typing import Any

_SIDE, _LEFT, _TOP, _BOTTOM = 260.0, 46.0, 10.0, 40.0


def reliability_card(bins: list[dict[str, Any]]) -> str:
    """A card with the diagram and what it says; `bins` have confidence, accuracy (shares) and samples."""
    samples = sum(int(b["samples"]) for b in bins) or 1
    error = sum(b["samples"] * abs(b["accuracy"] - b["confidence"]) for b in bins) / samples
    lean = sum(b["samples"] * (b["confidence"] - b["accuracy"]) for b in bins) / samples
    way = "surer than it is right" if lean > 0 else "right more often than it is sure"
    text = (
        f'<p class="soft">On average the confidence is {error:.1%} off (expected calibration error); on the whole the network is '
        f"{way}, by {abs(lean):.1%}. On the dashed line both agree; larger dots stand for more samples.</p>"
    )
    return f'<div class="card">{text}<div style="max-width:340px">{_diagram(bins, samples)}</div></div>'


def _diagram(bins: list[dict[str, Any]], samples: int) -> str:
    def px(share: float) -> float:
        return _LEFT + _SIDE * share

    def py(share: float) -> float:
        return _TOP + _SIDE * (1 - share)

    wide, high = _LEFT + _SIDE + 14, _TOP + _SIDE + _BOTTOM
    parts = [f'<svg viewBox="0 0 {wide:.0f} {high:.0f}" role="img" aria-label="Diagram of reliability">']
    for tick in (0.0, 0.25, 0.5, 0.75, 1.0):
        parts.append(f'<path class="grid" d="M{_LEFT} {py(tick):.1f}H{px(1):.1f}M{px(tick):.1f} {py(0):.1f}v5"/>')
        parts.append(f'<text class="tick" x="{_LEFT - 7}" y="{py(tick) + 4:.1f}" text-anchor="end">{tick:.0%}</text>')
        parts.append(f'<text class="tick" x="{px(tick):.1f}" y="{py(0) + 19:.1f}" text-anchor="middle">{tick:.0%}</text>')
    parts.append(f'<text class="tick" x="{px(0.5):.1f}" y="{high - 5:.1f}" text-anchor="middle">confidence</text>')
    parts.append(f'<path class="line dashed" style="stroke:var(--soft)" d="M{px(0):.1f} {py(0):.1f}L{px(1):.1f} {py(1):.1f}"/>')
    ordered = sorted(bins, key=lambda b: float(b["confidence"]))
    path = "L".join(f"{px(b['confidence']):.1f} {py(b['accuracy']):.1f}" for b in ordered)
    parts.append(f'<path class="line" style="stroke:var(--s0)" d="M{path}"/>')
    for b in ordered:
        radius = 2.5 + 7 * (b["samples"] / samples) ** 0.5
        tip = f"{b['samples']:,} answers of {b['confidence']:.1%}: {b['accuracy']:.1%} right"
        at = f'cx="{px(b["confidence"]):.1f}" cy="{py(b["accuracy"]):.1f}" r="{radius:.1f}"'
        parts.append(f'<circle class="dot" style="fill:var(--s0)" {at}><title>{tip}</title></circle>')
    return "".join([*parts, "</svg>"])
