"""What a network made: the images of the same seeds (or inputs) from evaluation to evaluation, and figures of them."""

from __future__ import annotations

import base64
from collections.abc import Sequence
from html import escape
from io import BytesIO

from PIL import Image

from trainer import sheet
from trainer.report.read import Json, View

ROWS = 10  # evaluations in the strip
IN_A_ROW = 12  # images of it
SIDE = 72  # pixels that an image is shown with
WIDEST = 1100
_QUARTERS = ("least noise", "less", "more", "most noise")


def of_samples(view: View, found: Json, title: str) -> str:
    """HTML of the sheets of a run, and of its loss by quarters of the time or its figures beside those of the inputs."""
    compared = _compared(found)
    of = f"the same validation {compared}" if compared else "fixed seeds"
    files = sorted(view.folder.samples.glob("step-*.png"))
    sheets = [(int(path.stem.partition("-")[2]), *read) for path in files if (read := sheet.read(path)) is not None]
    blocks = []
    if sheets:
        blocks.append(_strip(view, _spread(sheets), title, of))
        step, image, layout = sheets[-1]
        wide = min(WIDEST, max(image.width, layout.columns * SIDE))
        blocks.append(
            f"<h2>{title}What it makes</h2>"
            f'<p class="soft">Step {step:,}, {len(layout.captions)} images of {of}{_named(layout)}.</p>'
            f'<div class="card wide">{_image(image, wide, layout)}</div>'
        )
    quarters = found.get("loss_by_time")
    if isinstance(quarters, list) and len(quarters) == len(_QUARTERS):
        cells = "".join(f"<td>{_number(value)}</td>" for value in quarters)
        head = "".join(f"<th>{word}</th>" for word in _QUARTERS)
        blocks.append(
            f"<h2>{title}Loss by the noise in the image</h2>"
            '<div class="card wide"><table>'
            f"<tr><th>quarter of the time</th>{head}</tr><tr><td>loss</td>{cells}</tr></table></div>"
        )
    if "ways" in found:
        blocks.append(_ways(found, title))
    elif compared:
        blocks.append(_figures(found, title))
    return "".join(blocks)


def _figures(found: Json, title: str) -> str:
    """What was made, beside the input taken for it."""
    names = {"psnr": "PSNR, dB", "ssim": "SSIM", "mae": "mean error"}
    names |= {name: name.replace("lpips", "LPIPS").replace("_", " ") for name in found.get("metrics") or {} if "lpips" in name}
    rows = [(word, found.get(key) or {}) for word, key in (("output", "metrics"), ("input itself", "input")) if key in found]
    body = "".join(
        f"<tr><td>{word}</td>{''.join(f'<td>{_number(of.get(name))}</td>' for name in names)}</tr>" for word, of in rows
    )
    head = "".join(f"<th>{word}</th>" for word in names.values())
    count = int(found.get("translated") or found.get("samples") or 0)
    return (
        f"<h2>{title}How near the targets</h2>"
        f'<p class="soft">Means over {count:,} validation {_compared(found)}, values from 0 to 1.</p>'
        f'<div class="card wide"><table><tr><th></th>{head}</tr>{body}</table></div>'
    )


def _ways(found: Json, title: str) -> str:
    """How near pictures of each class come to themselves again."""
    names = {"samples": "pictures", "cycle_psnr": "PSNR, dB", "cycle_mae": "mean error"}
    ways = found["ways"] if isinstance(found["ways"], dict) else {}
    body = "".join(
        f"<tr><td>{escape(str(word))}</td>{''.join(f'<td>{_number(of.get(name))}</td>' for name in names)}</tr>"
        for word, of in ways.items()
    )
    head = "".join(f"<th>{word}</th>" for word in names.values())
    return (
        f"<h2>{title}How near themselves again</h2>"
        '<p class="soft">Validation pictures sent to the other class and back, values from 0 to 1.</p>'
        f'<div class="card wide"><table><tr><th>from</th>{head}</tr>{body}</table></div>'
    )


def _compared(found: Json) -> str:
    """What was compared with what it should be; empty where images are made of nothing."""
    if found.get("kind") in ("autoencoder", "cycle"):
        return "pictures"
    return "pairs" if found.get("kind") == "translate" or "input" in found else ""


Found = tuple[int, Image.Image, sheet.Layout]


def _spread(sheets: Sequence[Found]) -> list[Found]:
    """At most so many of them, evenly, the first and the last among them."""
    last = len(sheets) - 1
    count = min(ROWS, len(sheets))
    return [sheets[round(place * last / max(1, count - 1))] for place in range(count)]


def _strip(view: View, sheets: Sequence[Found], title: str, of: str) -> str:
    key = str(view.best_metric).removeprefix("val/")
    losses = {point["step"]: point[f"val/{key}"] for point in view.points if f"val/{key}" in point and "step" in point}
    rows = []
    for step, image, layout in sheets:
        loss = losses.get(step)
        told = f'<br><span class="soft small">{key} {_number(loss)}</span>' if loss is not None else ""
        row = sheet.strip(image, layout, IN_A_ROW)
        picture = _image(row, min(WIDEST - 150, row.width * SIDE // (layout.width + sheet.GAP)), layout)
        rows.append(f"<tr><td>step {step:,}{told}</td><td>{picture}</td></tr>")
    return (
        f"<h2>{title}How it learnt</h2>"
        f'<p class="soft">From evaluation to evaluation: {of}.</p>'
        f'<div class="card wide"><table class="strip">{"".join(rows)}</table></div>'
    )


def _number(value: object) -> str:
    return f"{value:.4g}" if isinstance(value, int | float) else "–"


def _named(layout: sheet.Layout) -> str:
    """The classes of the columns, where each column is of one class."""
    first = layout.captions[: layout.columns]
    same = all(caption == first[place % layout.columns] for place, caption in enumerate(layout.captions))
    return "; columns: " + escape(", ".join(first)) if same and any(first) else ""


def _image(image: Image.Image, width: int, layout: sheet.Layout) -> str:
    buffer = BytesIO()
    if image.width > width:
        image = image.resize((width, max(1, round(image.height * width / image.width))))
    image.save(buffer, "PNG", optimize=True)
    look = "image-rendering:pixelated;" if layout.width < SIDE else ""
    data = base64.b64encode(buffer.getvalue()).decode()
    return f'<img style="{look}width:{width}px;display:block" src="data:image/png;base64,{data}" alt="images that the run made">'
