"""Runs as a table. Without rich, which takes a second for a thousand rows: columns are padded, and coloured on a terminal."""

from __future__ import annotations

import os
import shutil
import sys
import unicodedata
from collections.abc import Iterable, Sequence
from typing import TextIO

from launcher.runs import Status, duration, moment

COLOURS = {
    "done": "32", "running": "36", "starting": "36", "stopping": "33", "suspended": "33", "pending": "34", "stopped": "33",
    "cancelled": "33", "timeout": "33", "failed": "31", "killed": "31", "new": "2",
}  # fmt: skip
_HEADS = ("run", "state", "step", "rate", "left", "best", "when", "")
_NOTE = 30  # columns that a note gets before others do
_RIGHT = {"step", "rate", "left"}


def runs(found: Sequence[Status]) -> str:
    """A table of runs. On a terminal no line is wider than it; elsewhere nothing is cut off."""
    width = shutil.get_terminal_size().columns if sys.stdout.isatty() else None
    rows = [_row(run) for run in found]
    return "\n".join(_lines(rows, [COLOURS[run.state] for run in found] if coloured(sys.stdout) else [], width))


def coloured(stream: TextIO) -> bool:
    """Whether a stream is a terminal that shows colours."""
    return stream.isatty() and "NO_COLOR" not in os.environ and os.environ.get("TERM") != "dumb"


def _row(run: Status) -> tuple[str, ...]:
    return (
        plain(run.name), run.state + (f" (requeued {run.restarts}x)" if run.restarts else ""), progress(run), pace(run),
        left(run), best(run), moment(run.at), note(run),
    )  # fmt: skip


def progress(run: Status) -> str:
    """The step, and the share of the run."""
    if not run.step and not run.samples:
        return ""
    return f"{run.step:,} ({run.share:.0%})" if run.share is not None else f"{run.step:,}"


def pace(run: Status) -> str:
    return f"{run.rate:,.4g}/s" if run.rate else ""


def left(run: Status) -> str:
    return duration(run.eta) if run.eta is not None else ""


def best(run: Status) -> str:
    return f"{plain(run.best_metric or '')} {run.best:.4f}" if run.best is not None else ""


def note(run: Status) -> str:
    """What a table says beside the state: where a run trains, why another does not."""
    if run.state == "pending":
        return plain(run.reason) + (f"; expected to start {moment(run.start)}" if run.start else "")
    if run.state in ("running", "suspended", "stopping") and (run.nodes or run.host):
        job = f" (job {run.job}, {duration(run.left)} to its limit)" if run.job and run.left is not None else ""
        return plain(f"on {run.nodes or run.host}{job}")
    return "" if run.state in ("done", "new") else plain(run.reason)


def _lines(rows: Sequence[Sequence[str]], colours: Sequence[str], width: int | None) -> Iterable[str]:
    used = [place for place in range(len(_HEADS)) if any(row[place] for row in rows)]
    if width is not None:
        used = _room(rows, used, width)
    widths = {place: max([len(_HEADS[place]), *(_width(row[place]) for row in rows)]) for place in used}
    for number, row in enumerate([_HEADS, *rows]):
        line, room = "", width
        for place in used:
            gap = "  " if place != used[0] else ""
            cell, space = row[place], widths[place] if place != used[-1] else 0
            if room is not None and room - len(gap) < max(space, _width(cell)):
                cell = cut(cell, room - len(gap))
                space = min(space, max(0, room - len(gap)))
            pad = " " * max(0, space - _width(cell))
            text = pad + cell if _HEADS[place] in _RIGHT else cell + pad
            room = None if room is None else room - len(gap) - _width(text)
            if number and colours and _HEADS[place] == "state":
                text = f"\x1b[{colours[number - 1]}m{text}\x1b[0m"
            line += gap + text
            if room is not None and room <= 0:
                break
        yield line.rstrip()


def _room(rows: Sequence[Sequence[str]], used: list[int], width: int) -> list[int]:
    """The columns for a narrow terminal: some are left out before the note, why a run waits or failed, is cut short."""
    for name in ("rate", "when", "left", "best"):
        widest = [max([len(_HEADS[place]), *(_width(row[place]) for row in rows)]) for place in used]
        if used and used[-1] == len(_HEADS) - 1:
            widest[-1] = min(widest[-1], _NOTE)
        if sum(widest) + 2 * (len(used) - 1) <= width:
            break
        used = [place for place in used if _HEADS[place] != name]
    return used


def cut(text: str, width: int) -> str:
    """A text that is no wider than that; what is left out shows as one character."""
    if _width(text) <= width:
        return text
    kept = ""
    for character in text:
        if _width(kept + character) > width - 1:
            break
        kept += character
    return kept + "…" if width > 0 else ""


def plain(text: str) -> str:
    """Text from a file on one line: what would move a terminal's cursor becomes a space."""
    return text if text.isprintable() else " ".join("".join(c if c.isprintable() else " " for c in text).split())


def _width(text: str) -> int:
    """Columns of a terminal that a text takes."""
    return len(text) if text.isascii() else sum(2 if unicodedata.east_asian_width(c) in "WF" else 1 for c in text)
