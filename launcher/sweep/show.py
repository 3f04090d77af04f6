"""Sweeps as tables for people. Imports rich, so imported where something is shown."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from rich import box
from rich.console import Console
from rich.table import Table
from rich.text import Text

from launcher.sweep.members import Sweep
from trainer.rundir.matrix import Matrix
from trainer.rundir.sweep import Row, as_text, keys

_STYLES = {
    "done": "green", "running": "cyan", "queued": "dim", "stopped": "yellow", "failed": "red", "killed": "red", "new": "dim",
}  # fmt: skip
_FIRST, _LAST = 8, 2


def members(sweep: Sweep, states: dict[str, str]) -> None:
    """Print the members: the first and the last when they are many."""
    settings = list(dict.fromkeys(key for member in sweep.members for key in member.shown))
    table = _table(["member", *_short(settings), "state"])
    many = len(sweep.members) > _FIRST + _LAST + 1
    for index, member in enumerate(sweep.members):
        if many and index == _FIRST:
            table.add_row(f"… {len(sweep.members) - _FIRST - _LAST} more")
        if not many or index < _FIRST or index >= len(sweep.members) - _LAST:
            values = [cell(member.shown[key]) if key in member.shown else "" for key in settings]
            state = states.get(member.name, "new")
            table.add_row(Text(member.name), *map(Text, values), Text(state, style=_STYLES.get(state, "cyan")))
    _print(table)
    done = sum(state == "done" for state in states.values())
    busy = len(states) - done
    count = len(sweep.members)
    counts = [f"{done} done" if done else "", f"{busy} queued or running" if busy else "", f"{count - len(states)} to train"]
    limit = sweep.plan.file.parallel
    at_once = f", at most {limit} at once" if limit is not None else ""
    print(f"{sweep.name}: {count} members: {', '.join(filter(None, counts))}{at_once}; compared by {sweep.best}")


def scripts(array: str, body: str) -> None:
    """Print the scripts of an array."""
    if array:
        print(f"\n# ---- job script of the array\n{array}\n# ---- what each member runs\n{body}", end="")


def submitted(
    sweep: Sweep, job: str | None, count: int, code: Sequence[str], *, done: int, busy: int, held: dict[str, str], left: int
) -> None:  # fmt: skip
    """Say what became of a submission."""
    if job is not None:
        limit = sweep.plan.file.parallel
        at_once = f", at most {limit} at once" if limit is not None else ""
        print(f"{sweep.name} is job {job}: {count:,} member{'s' if count != 1 else ''}{at_once}")
        print(f"  code: {code[0]}", *(f"  {line}" for line in code[1:]), sep="\n")
    rest = [f"{done:,} done already" if done else "", f"{busy:,} queued or running" if busy else ""]
    if any(rest):
        print(f"  {', '.join(filter(None, rest))}; not submitted again")
    for name, holder in held.items():
        print(f"  {name} is in use by {holder}; not submitted")
    if left:
        print(f"  {left:,} are left: an array of this site holds no more (MaxArraySize); the same command submits them later")
    if job is None and not busy and not held:
        print(f"{sweep.name}: all {len(sweep.members):,} members are done")
    print(f"  graft runs --sweep {sweep.name}   graft report {sweep.name}")


def results(name: str, metric: str, rows: Sequence[Row]) -> None:
    """Print the table of a sweep, the best first."""
    settings = keys(list(rows))
    table = _table(["member", *_short(settings), metric, "state", "step", "time"])
    for row in rows:
        values = [cell(row.settings[key]) if key in row.settings else "" for key in settings]
        best = f"{row.best:.4f}" if row.best is not None else ""
        seconds = f"{row.seconds:,.0f} s" if row.seconds is not None else ""
        state = Text(row.state, style=_STYLES.get(row.state, ""))
        table.add_row(Text(row.name), *map(Text, values), best, state, f"{row.step:,}", seconds)
    _print(table)
    counts: dict[str, int] = {}
    for row in rows:
        counts[row.state] = counts.get(row.state, 0) + 1
    print(f"{name}: {len(rows)} members: " + ", ".join(f"{count} {state}" for state, count in counts.items()))


def matrix(name: str, found: Matrix) -> None:
    """Print a matrix: a line for each source and strategy, a column for each target, the best of each target marked."""
    table = _table(["source", "strategy", *found.targets])
    for source in found.sources:
        for strategy in found.strategies:
            if not any((source, target, strategy) in found.rows for target in found.targets):
                continue
            values = []
            for target in found.targets:
                value = found.value((source, target, strategy))
                row = found.rows.get((source, target, strategy))
                text = f"{value:.4f}" if value is not None else (row.state if row is not None else "")
                best = value is not None and value == found.best(target)
                values.append(Text(f"{text} *" if best else text, style="bold green" if best else "dim" if value is None else ""))
            table.add_row(Text(source), Text(strategy), *values)
    _print(table)
    print(f"{name}: {found.metric}; * the best of its target. graft report {name} draws it")


def cell(value: Any) -> str:
    """A setting, short."""
    return f"{value:.4g}" if isinstance(value, float) else as_text(value)


def _short(settings: Sequence[str]) -> list[str]:
    """The last part of each key, where that is enough."""
    last = [key.rpartition(".")[2] for key in settings]
    return [short if last.count(short) == 1 else key for key, short in zip(settings, last, strict=True)]


def _print(table: Table) -> None:
    """Print a table as wide as it is: a name that is cut is of no use in the next command."""
    console = Console()
    wide = console.measure(table, options=console.options.update(max_width=1000)).maximum
    Console(width=max(console.width, wide)).print(table)


def _table(columns: Sequence[str]) -> Table:
    table = Table(box=box.SIMPLE, pad_edge=False)
    for column in columns:
        table.add_column(Text(column), no_wrap=True, overflow="fold")
    return table
