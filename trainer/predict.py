"""Classes for pictures: files in, a table or JSON lines out."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any, TextIO

import torch
from torch import nn

from trainer.config import EXIT_DONE, EXIT_FAULT, GraftError, UserError, nearest

SUFFIXES = frozenset({".jpg", ".jpeg", ".png", ".bmp", ".gif", ".tif", ".tiff", ".webp", ".ppm", ".pgm"})
Read = Callable[[Path], torch.Tensor]
Normalise = Callable[[torch.Tensor], torch.Tensor]


def expand(files: Iterable[Path]) -> list[Path]:
    """The files, with each folder replaced by the pictures below it in order of name; hidden ones are left out.

    Raises UserError for what is not there and for a folder without a picture.
    """
    found: list[Path] = []
    for path in files:
        if path.is_dir():
            below = sorted(p for p in path.rglob("*") if p.suffix.lower() in SUFFIXES and p.is_file() and not _hidden(p, path))
            if not below:
                raise UserError(f"{path}: no picture in this folder; known endings: {' '.join(sorted(SUFFIXES))}")
            found += below
        elif path.exists():
            found.append(path)
        else:
            beside = [str(path.parent / p.name) for p in path.parent.iterdir()] if path.parent.is_dir() else []
            raise UserError(f"{path}: no such file{nearest(str(path), beside) if len(beside) > 0 else ''}")
    return found


def _hidden(path: Path, root: Path) -> bool:
    return any(part.startswith(".") for part in path.relative_to(root).parts)


def predict_files(
    network: nn.Module, classes: Sequence[str], files: Sequence[Path], read: Read, normalise: Normalise, *, top: int, batch: int
) -> list[dict[str, Any]]:
    """A row a file, in their order: {file, class, probability, top: [{class, probability}, …]}, or {file, error} for a bad one.

    `network` in eval mode; `read` gives a picture ready as uint8 [c, h, w]; `normalise` takes a stack [n, c, h, w] of them to
    the network's device and to float. `top` is cut to the number of classes. Raises UserError as `expand` does.
    """
    if top < 1 or batch < 1:
        raise UserError("--top and --batch must be at least 1")
    rows: list[dict[str, Any]] = []
    waiting: list[tuple[dict[str, Any], torch.Tensor]] = []
    for path in expand(files):
        row: dict[str, Any] = {"file": str(path)}
        rows.append(row)
        try:
            waiting.append((row, read(path)))
        except (GraftError, OSError, ValueError) as error:
            row["error"] = _reason(error, path)
        if len(waiting) == batch:
            _classify(network, classes, waiting, normalise, top)
            waiting = []
    if waiting:
        _classify(network, classes, waiting, normalise, top)
    return rows


def _reason(error: Exception, path: Path) -> str:
    """The message without the name of the file, which the row has."""
    text = " ".join(str(error).split()) or type(error).__name__
    return text.removeprefix(f"{path}: ")


def _classify(
    network: nn.Module, classes: Sequence[str], waiting: list[tuple[dict[str, Any], torch.Tensor]], normalise: Normalise, top: int
) -> None:
    with torch.inference_mode():
        logits = network(normalise(torch.stack([image for _, image in waiting])))
        probabilities = logits.float().softmax(1).cpu()
    values, indices = probabilities.topk(min(top, len(classes)), dim=1)
    for (row, _), chances, numbers in zip(waiting, values.tolist(), indices.tolist(), strict=True):
        ranked = [{"class": classes[i], "probability": p} for i, p in zip(numbers, chances, strict=True)]
        row |= ranked[0]
        row["top"] = ranked


def show(rows: Sequence[dict[str, Any]], as_json: bool, stream: TextIO | None = None) -> int:
    """Print the rows as a table, or as one JSON object a line; returns the exit code: 1 when a file could not be read."""
    out = stream if stream is not None else sys.stdout
    if as_json:
        for row in rows:
            print(json.dumps(row, ensure_ascii=False), file=out)
    else:
        _table(rows, out)
    return EXIT_FAULT if any("error" in row for row in rows) else EXIT_DONE


def _table(rows: Sequence[dict[str, Any]], out: TextIO) -> None:
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    several = any(len(row.get("top", ())) > 1 for row in rows)
    table = Table(box=None, pad_edge=False, header_style="bold")
    table.add_column("file", overflow="fold")
    table.add_column("class")
    table.add_column("probability", justify="right")
    if several:
        table.add_column("then")
    for row, cells in zip(rows, _cells(rows), strict=True):
        texts = [Text(cell) for cell in cells]
        if "error" in row:
            texts[1].stylize("red")
        table.add_row(*texts[: len(table.columns)])
    # Without a terminal nothing is cut: whoever reads the lines has no width.
    widest = [max(map(len, column)) for column in zip(*_cells(rows), strict=True)]
    width = None if out.isatty() else 40 + sum(widest)
    Console(file=out, highlight=False, width=width).print(table)


def _cells(rows: Sequence[dict[str, Any]]) -> Iterator[list[str]]:
    for row in rows:
        if "error" in row:
            yield [row["file"], f"not read: {row['error']}", "", ""]
        else:
            others = ", ".join(f"{entry['class']} {entry['probability']:.1%}" for entry in row["top"][1:])
            yield [row["file"], row["class"], f"{row['probability']:.1%}", others]
