"""The last evaluation of a run: what was said of its samples, and examples."""

from __future__ import annotations

import base64
from html import escape
from io import BytesIO

from trainer.report.multilabel import of_labels
from trainer.report.read import Json, View, picture
from trainer.report.regress import of_values
from trainer.report.reliability import reliability_card
from trainer.report.svg import heat_map, meter

MAX_CLASSES = 100
MAX_PICTURE = 60_000
PAIRS = 12
TINY = 64


def evaluation(view: View, *, heading: str = "") -> str:
    """HTML of what samples/evaluation.json holds, head by head where there are several; empty when there is none."""
    found = view.evaluation
    if not found:
        return ""
    title = f"{escape(heading)}: " if heading else ""
    if found.get("kind") in ("diffusion", "gan", "translate", "cycle", "autoencoder"):
        from trainer.report.samples import of_samples  # opens images: the report of a classifier needs no library for that

        return of_samples(view, found, title)
    when = f"step {found['step']:,}, " if isinstance(found.get("step"), int) else ""
    examples = [e for e in found.get("examples", []) if isinstance(e, dict)]
    pictures = _examples(view, examples, title) if examples else ""
    if "heads" in found:
        sections = [_section(head, f"{title}{escape(str(name))}: ", when) for name, head in found["heads"].items()]
        return "".join([*sections, pictures])
    if found.get("kind", "classify") == "classify":  # its table of classes may be long: it comes last
        return _of_classes(found, title, when) + pictures + _of_each_class(found, title)
    return _section(found, title, when) + pictures


def _section(found: Json, title: str, when: str) -> str:
    kind = found.get("kind", "classify")
    if kind == "multilabel":
        return of_labels(found, title, when)
    if kind == "regress":
        return of_values(found, title, when)
    return _of_classes(found, title, when) + _of_each_class(found, title)


def _of_classes(found: Json, title: str, when: str) -> str:
    matrix, classes = found["confusion"], [str(c) for c in found["classes"]]
    total = sum(map(sum, matrix))
    right = sum(row[i] for i, row in enumerate(matrix))
    share = f" ({right / total:.1%})" if total else ""
    intro = f'<p class="soft">{when}{total:,} validation samples, {right:,} right{share}.</p>'
    blocks = [f"<h2>{title}What was mistaken for what</h2>{intro}", _confusion(matrix, classes)]
    if found.get("reliability"):
        blocks.append(f"<h2>{title}Calibration</h2>" + reliability_card(found["reliability"]))
    return "".join(blocks)


def _of_each_class(found: Json, title: str) -> str:
    return f"<h2>{title}Classes</h2>" + _classes(found["per_class"]) if found.get("per_class") else ""


def _confusion(matrix: list[list[int]], classes: list[str]) -> str:
    pairs = sorted(
        ((count, truth, seen) for truth, row in enumerate(matrix) for seen, count in enumerate(row) if truth != seen and count),
        key=lambda pair: (-pair[0], pair[1], pair[2]),
    )
    big = len(classes) > MAX_CLASSES
    shown = pairs[: 50 if big else PAIRS]
    rows = "".join(
        f'<tr><td>{escape(classes[t])}</td><td class="text">{escape(classes[s])}</td><td>{n}</td>'
        f"<td>{n / max(1, sum(matrix[t])):.1%}</td></tr>"
        for n, t, s in shown
    )
    table = (
        f'<h3>Most frequent mistakes</h3><table><tr><th>truth</th><th class="text">taken for</th><th>times</th>'
        f"<th>of the class</th></tr>{rows}</table>"
        if rows
        else '<p class="soft">No mistakes.</p>'
    )
    if big:
        return f'<div class="card"><div class="scroll">{table}</div></div>'
    many = len(classes) > 24
    drawing = heat_map(matrix, classes, width=1080 if many else 680)
    heat = f'<h3>Rows: truth. Columns: taken for.</h3><div class="wide">{drawing}</div>'
    layout = "stack" if many else "two uneven"
    return f'<div class="{layout}"><div class="card">{heat}</div><div class="card">{table}</div></div>'


def _classes(per_class: list[Json]) -> str:
    rows = []
    for entry in per_class:
        cells = "".join(meter(entry.get(key)) for key in ("precision", "recall", "f1"))
        rows.append(f"<tr><td>{escape(str(entry.get('name')))}</td>{cells}<td>{int(entry.get('support') or 0):,}</td></tr>")
    head = "<tr><th>class</th><th>precision</th><th>recall</th><th>F1</th><th>samples</th></tr>"
    return f'<div class="card"><div class="scroll"><table>{head}{"".join(rows)}</table></div></div>'


def _examples(view: View, examples: list[Json], prefix: str) -> str:
    groups: dict[str, list[Json]] = {}
    for example in examples:
        usual = "Right" if example.get("correct") else "Wrong, the most confident"
        groups.setdefault(str(example.get("group") or usual), []).append(example)
    parts = []
    for name in sorted(groups, key=lambda name: name.startswith("Right")):  # stable: what is wrong comes first
        drawn = "".join(_figure(view, example) for example in groups[name])
        if drawn:
            parts.append(f'<h2>{prefix}{escape(name)}</h2><div class="pictures">{drawn}</div>')
    return "".join(parts)


def _figure(view: View, example: Json) -> str:
    data = picture(view.folder, str(example.get("file", "")))
    if data is None:
        return ""
    source, tiny = _embedded(data)
    truth, predicted = escape(str(example.get("truth"))), escape(str(example.get("predicted")))
    confidence = example.get("confidence")
    sure = f' <span class="soft">{confidence:.0%}</span>' if isinstance(confidence, int | float) else ""
    right = example.get("correct")
    text = f"<b>{predicted}</b>{sure}" + ("" if right else f"<br>is {truth}")
    kind = "" if right is None else ' class="right"' if right else ' class="wrong"'
    look = ' class="tiny"' if tiny else ""
    alt = f"{truth}, taken for {predicted}"
    return f'<figure{kind}><img{look} src="{source}" alt="{alt}"><figcaption>{text}</figcaption></figure>'


def _embedded(data: bytes) -> tuple[str, bool]:
    """A data address of a PNG, and whether it is so small that its pixels should stay sharp. Big pictures are reduced."""
    from PIL import Image

    with Image.open(BytesIO(data)) as image:
        tiny = max(image.size) <= TINY
        if len(data) > MAX_PICTURE:
            small = image.convert("RGB")
            small.thumbnail((256, 256))
            buffer = BytesIO()
            small.save(buffer, "JPEG", quality=85)
            return "data:image/jpeg;base64," + base64.b64encode(buffer.getvalue()).decode(), tiny
    return "data:image/png;base64," + base64.b64encode(data).decode(), tiny
