"""What a network says of pictures: files in, a table or JSON lines out."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any, TextIO

import torch
from torch import nn

from trainer.answers import kind_of, module_of
from trainer.config import EXIT_DONE, EXIT_FAULT, GraftError, UserError, nearest

SUFFIXES = frozenset({".jpg", ".jpeg", ".png", ".bmp", ".gif", ".tif", ".tiff", ".webp", ".ppm", ".pgm"})
Read = Callable[[Path], torch.Tensor]
Normalise = Callable[[torch.Tensor], torch.Tensor]
Say = Callable[[torch.Tensor], list[dict[str, Any]]]


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
    network: nn.Module, say: Say, files: Sequence[Path], read: Read, normalise: Normalise, *, batch: int
) -> list[dict[str, Any]]:
    """A row a file, in their order: {file, …} with what `say` makes of its logits, or {file, error} for a bad one.

    `network` in eval mode; `read` gives a picture ready as uint8 [c, h, w]; `normalise` takes a stack [n, c, h, w] of them to
    the network's device and to float; `say` gives a dict for each of the logits [n, labels]. Raises UserError as `expand` does.
    """
    if batch < 1:
        raise UserError("--batch must be at least 1")
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
            _answer(network, say, waiting, normalise)
            waiting = []
    if waiting:
        _answer(network, say, waiting, normalise)
    return rows


def _reason(error: Exception, path: Path) -> str:
    """The message without the name of the file, which the row has."""
    text = " ".join(str(error).split()) or type(error).__name__
    return text.removeprefix(f"{path}: ")


def _answer(network: nn.Module, say: Say, waiting: list[tuple[dict[str, Any], torch.Tensor]], normalise: Normalise) -> None:
    with torch.inference_mode():
        said = say(network(normalise(torch.stack([image for _, image in waiting]))).float())
    for (row, _), answer in zip(waiting, said, strict=True):
        row |= answer


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

    headings, lines = _cells(rows)
    table = Table(box=None, pad_edge=False, header_style="bold")
    for place, heading in enumerate(headings):
        table.add_column(heading, overflow="fold" if place == 0 else "ellipsis")
    for row, cells in zip(rows, lines, strict=True):
        texts = [Text(cell) for cell in cells]
        if "error" in row:
            texts[1].stylize("red")
        table.add_row(*texts)
    # Without a terminal nothing is cut: whoever reads the lines has no width.
    widest = [max(map(len, column)) for column in zip(headings, *lines, strict=True)]
    width = None if out.isatty() else 40 + sum(widest)
    Console(file=out, highlight=False, width=width).print(table)


def _cells(rows: Sequence[dict[str, Any]]) -> tuple[list[str], list[list[str]]]:
    """(headings, the cells of each row)."""
    kind = next((kind_of(row) for row in rows if "error" not in row), "classify")
    said = module_of(kind)
    headings = ["file", *said.headings(rows)]
    lines = []
    for row in rows:
        cells = [row["file"], f"not read: {row['error']}"] if "error" in row else [row["file"], *said.cells(row)]
        lines.append([*cells, *[""] * len(headings)][: len(headings)])
    return headings, lines
