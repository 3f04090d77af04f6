"""The section of an evaluation of labels that go with each other."""

from __future__ import annotations

from html import escape

from trainer.report.read import Json
from trainer.report.svg import meter


def of_labels(found: Json, title: str, when: str) -> str:
    """A table with the figures of every label."""
    samples, right = int(found.get("samples") or 0), int(found.get("right") or 0)
    share = f" ({right / samples:.1%})" if samples else ""
    intro = (
        f'<p class="soft">{when}{samples:,} validation samples, {right:,}{share} with nothing wrong; a label counts as said from '
        f"a probability of {float(found.get('threshold') or 0.5):g} on.</p>"
    )
    rows = []
    for entry in found.get("per_label", []):
        cells = "".join(meter(entry.get(key)) for key in ("ap", "precision", "recall", "f1"))
        support, known = int(entry.get("support") or 0), int(entry.get("known") or 0)
        rows.append(f"<tr><td>{escape(str(entry.get('name')))}</td>{cells}<td>{support:,}</td><td>{known:,}</td></tr>")
    names = ("label", "average precision", "precision", "recall", "F1", "have it", "known")
    head = "".join(f"<th>{name}</th>" for name in names)
    table = f'<div class="scroll"><table><tr>{head}</tr>{"".join(rows)}</table></div>'
    return f'<h2>{title}Labels</h2>{intro}<div class="card">{table}</div>'
