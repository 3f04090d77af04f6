"""`graft watch`: all runs in one live table, with the curves of their losses."""

from __future__ import annotations

import contextlib
import gc
import itertools
import os
import shutil
import signal
import sys
import time
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

from rich import box
from rich.console import Console, Group, RenderableType
from rich.live import Live
from rich.table import Table
from rich.text import Text

from launcher import table
from launcher.glance import number, objects
from launcher.queue import Queue
from launcher.runs import Status, every
from launcher.verdict import ORDER
from trainer.rundir import RunDir

_BLOCKS = "▁▂▃▄▅▆▇█"
_COLUMNS = 20
_FIRST = 1 << 18  # bytes of a record that is first seen; what came before is left out of its curve
_KEPT = 1024  # losses of a curve
_QUEUE = 10.0  # seconds between two questions to Slurm, however often the table is drawn
_STYLES = {"31": "red", "32": "green", "33": "yellow", "34": "blue", "36": "cyan", "2": "dim"}


@dataclass
class Curve:
    """The losses of a run, read from its record as it grows."""

    path: Path
    losses: list[float] = field(default_factory=list)
    _place: int = 0
    _inode: int = 0
    _stride: int = 1
    _waiting: list[float] = field(default_factory=list)

    def read(self) -> None:
        """Take in what was added; a record that a resume wrote anew is read again."""
        try:
            with self.path.open("rb") as file:
                facts = os.fstat(file.fileno())
                if facts.st_ino != self._inode or facts.st_size < self._place:
                    self.losses, self._waiting, self._stride = [], [], 1
                    self._inode, self._place = facts.st_ino, max(0, facts.st_size - _FIRST)
                    if self._place:
                        file.seek(self._place)
                        self._place += len(file.readline())
                file.seek(self._place)
                text = file.read()
        except OSError:
            return
        whole = text[: text.rfind(b"\n") + 1]  # a line that is half written is read when it is whole
        self._place += len(whole)
        for point in objects(whole):
            if (loss := number(point.get("train/loss"))) is not None:
                self._add(loss)

    def _add(self, loss: float) -> None:
        self._waiting.append(loss)
        if len(self._waiting) == self._stride:
            self.losses.append(sum(self._waiting) / self._stride)
            self._waiting = []
        if len(self.losses) == _KEPT:  # twice as coarse from here on
            self.losses = [(a + b) / 2 for a, b in zip(self.losses[::2], self.losses[1::2], strict=True)]
            self._stride *= 2


def spark(values: Sequence[float], columns: int = _COLUMNS) -> str:
    """A curve as a row of blocks, each the mean of its share of the values; the highest column is the largest mean."""
    if not values or columns < 1:
        return ""
    columns = min(columns, len(values))
    edges = [len(values) * place // columns for place in range(columns + 1)]
    means = [sum(values[a:b]) / (b - a) for a, b in itertools.pairwise(edges)]
    low, high = min(means), max(means)
    scale = (len(_BLOCKS) - 1) / (high - low) if high > low else 0.0
    return "".join(_BLOCKS[round((mean - low) * scale)] for mean in means)


class Watch:
    """The runs of a folder and the curves of those that are shown."""

    def __init__(self, runs: Path) -> None:
        self._runs = runs
        self._queue = Queue(_QUEUE)
        self._curves: dict[str, Curve] = {}

    def draw(self, width: int, height: int | None) -> RenderableType:
        """The table as it is now; with a height only as many runs as it has room for, those that run first."""
        found = sorted(every(self._runs, self._queue), key=lambda run: (ORDER.index(run.state), -run.at))
        if not found:
            return Text(f"no runs in {self._runs} yet")
        # beside the runs: the heading, the names of the columns, a line below them, blank lines
        room = len(found) if height is None else max(1, height - (6 if self._queue.problem else 5))
        shown = found[:room]
        rows = [self._cells(run) for run in shown]
        drawn = Table(box=box.SIMPLE_HEAD, pad_edge=False, padding=(0, 1), collapse_padding=True)
        columns = _fit(rows, width)
        for name, wide in columns.items():
            right = name in ("step", "rate", "left", "loss")
            drawn.add_column(name, justify="right" if right else "left", no_wrap=True, overflow="ellipsis", width=wide)
        for run, row in zip(shown, rows, strict=True):
            if columns.get("curve", _COLUMNS) < _COLUMNS:
                row["curve"] = Text(spark(self._curves[run.folder].losses, columns["curve"]))
            drawn.add_row(*(row[column] for column in columns))
        return Group(Text(self._head(found, len(shown)), style="dim", no_wrap=True, overflow="ellipsis"), drawn)

    def _cells(self, run: Status) -> dict[str, Text]:
        curve = self._curves.setdefault(run.folder, Curve(RunDir(Path(run.folder)).metrics))
        curve.read()
        where = run.nodes or run.host or (table.note(run) if run.state == "pending" else "")
        state = run.state + (f" {run.restarts}x" if run.restarts else "")
        return {
            "run": Text(table.plain(run.name)), "state": Text(state, style=_STYLES[table.COLOURS[run.state]]),
            "step": Text(table.progress(run)), "rate": Text(table.pace(run)), "left": Text(table.left(run)),
            "loss": Text(f"{run.loss:.4g}" if run.loss is not None else ""), "curve": Text(spark(curve.losses)),
            "best": Text(table.best(run)), "where": Text(table.plain(where)),
        }  # fmt: skip

    def _head(self, found: Sequence[Status], shown: int) -> str:
        states = Counter(run.state for run in found)
        counts = ", ".join(f"{states[state]} {state}" for state in ORDER if states[state])
        more = f"; {len(found) - shown} not shown" if shown < len(found) else ""
        problem = f"\n{self._queue.problem}" if self._queue.problem else ""
        return f"{counts}{more}; {time.strftime('%H:%M:%S')}{problem}"


_ORDER = ("run", "state", "step", "rate", "left", "loss", "curve", "best", "where")
_IMPORTANCE = ("run", "state", "step", "loss", "curve", "left", "best", "where", "rate")
_ELASTIC = {"run": 16, "curve": 8, "where": 24}  # columns that may be cut off, and what they get before others do


def _fit(rows: Sequence[dict[str, Text]], width: int) -> dict[str, int]:
    """The columns that a terminal has room for, the more important ones first, each with its width."""
    used = [name for name in _ORDER if any(row[name].plain for row in rows)]
    full = {name: max([len(name), *(row[name].cell_len for row in rows)]) for name in used}
    chosen: dict[str, int] = {}
    left = width - 2  # the margins
    for name in (name for name in _IMPORTANCE if name in full):
        wanted = min(full[name], _ELASTIC.get(name, full[name]))
        if wanted + 2 <= left or name == "run":
            chosen[name] = wanted
            left -= wanted + 2
    for name in (name for name in _ELASTIC if name in chosen):
        more = min(full[name] - chosen[name], max(0, left))
        chosen[name] += more
        left -= more
    return {name: chosen[name] for name in _ORDER if name in chosen}


def watch(runs: Path, *, every: float) -> None:
    """Draw the table anew each `every` seconds until Ctrl-C; where there is no terminal, once."""
    view = Watch(runs)
    if not sys.stdout.isatty():
        console = Console(width=max(160, shutil.get_terminal_size().columns))
        console.print(view.draw(console.width, None))
        return
    gc.enable()  # which the command line turned off to start quickly
    signal.signal(signal.SIGINT, signal.default_int_handler)
    for number_ in (signal.SIGTERM, signal.SIGHUP):  # they too leave the terminal as it was
        signal.signal(number_, lambda received, frame: sys.exit(128 + received))
    console = Console()
    with contextlib.suppress(KeyboardInterrupt), Live(console=console, auto_refresh=False, screen=True) as live:
        while True:
            live.update(view.draw(console.width, console.height), refresh=True)
            time.sleep(every)
