"""What the cells of a source say of its images: classes, labels and numbers, as text (CSV) or as they are typed (Arrow, JSON)."""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

from trainer.config.errors import UserError
from trainer.config.formats.query import Asked, short
from trainer.config.targets import Target

UNKNOWN = math.nan  # one object, so that equal rows compare equal
Cell = Any
Said = tuple[Any, ...]  # of one sample: class or none; names, or none; numbers
Order = Callable[[str, Iterable[Any]], tuple[tuple[str, ...], Mapping[Any, int]]]  # of a column's classes: names, places
_NUMBER = re.compile(r"[+-]?[0-9]+(\.[0-9]+)?")
_SWITCH = {"0": 0.0, "1": 1.0, "0.0": 0.0, "1.0": 1.0, "false": 0.0, "true": 1.0}
_MOST = 10_000  # labels


def by_name(column: str, labels: Iterable[Any]) -> tuple[tuple[str, ...], Mapping[Any, int]]:
    """Classes in the order of their names, or of their values where all look like numbers."""
    found = {label: str(label) for label in labels}
    texts = set(found.values())
    numbers = all(_NUMBER.fullmatch(text) for text in texts)
    ordered = sorted(texts, key=lambda text: (float(text), text)) if numbers else sorted(texts)
    place = {text: index for index, text in enumerate(ordered)}
    return tuple(ordered), {label: place[text] for label, text in found.items()}


class Reading:
    """Reads the cells of the asked targets, row by row, then numbers what they say."""

    def __init__(self, where: str, asked: Sequence[Asked], order: Order = by_name, named: Sequence[str] = ()) -> None:
        """`order` numbers the classes of a column; `named` are the columns whose classes are known beforehand."""
        self._where, self._asked, self._order, self._named = where, asked, order, frozenset(named)
        self.columns = tuple(dict.fromkeys(column for one in asked for column in one.columns))

    @property
    def plain(self) -> bool:
        """Whether a class is all that is asked for; it must then be known of every image."""
        return len(self._asked) == 1 and self._asked[0].kind == "class"

    def row(self, at: str, cells: Mapping[str, Cell]) -> Said:
        """What a sample says. Raises UserError that begins with `at`."""
        return tuple(_READERS[one.kind](at, one, [cells[column] for column in one.columns]) for one in self._asked)

    def finish(self, rows: Sequence[Said]) -> tuple[tuple[Target, ...], list[int], list[tuple[float, ...]]]:
        """(targets, the first class of each sample or -1, the values of each sample, which a plain source has none of)."""
        targets: list[Target] = []
        columns: list[list[tuple[float, ...]]] = []
        for place, one in enumerate(self._asked):
            target, values = self._one(one, [row[place] for row in rows])
            targets.append(target)
            columns.append(values)
        first = next((place for place, one in enumerate(self._asked) if one.kind == "class"), None)
        labels = [-1] * len(rows) if first is None else [_index(value[0]) for value in columns[first]]
        if self.plain:
            return tuple(targets), labels, [()] * len(rows)
        return tuple(targets), labels, [sum(parts, ()) for parts in zip(*columns, strict=True)]

    def _one(self, one: Asked, said: Sequence[Any]) -> tuple[Target, list[tuple[float, ...]]]:
        if one.kind == "class":
            found = {value for value in said if value is not None}
            if not found:
                raise UserError(f"{self._where}: the column '{one.columns[0]}' is empty in every row")
            names, places = self._order(one.columns[0], found)
            return Target(one.name, "class", names), [(UNKNOWN if v is None else float(places[v]),) for v in said]
        if one.kind == "labels" and len(one.columns) == 1:
            return self._names(one, said)
        for index, column in enumerate(one.columns):
            if all(math.isnan(values[index]) for values in said):
                raise UserError(f"{self._where}: the column '{column}' is empty in every row")
        return Target(one.name, one.kind, tuple(short(column) for column in one.columns)), list(said)

    def _names(self, one: Asked, said: Sequence[Any]) -> tuple[Target, list[tuple[float, ...]]]:
        column = one.columns[0]
        found = {name for names in said if names is not None for name in names}
        if not found:
            raise UserError(f"{self._where}: the column '{column}' has no label in any row")
        if {str(name) for name in found} <= {"0", "1"} and column not in self._named:
            raise UserError(
                f"{self._where}: '{column}' is read as names of labels and has only 0 and 1; several columns of 0 and 1 are "
                f"labels=A,B, and one alone is two classes: label={column}"
            )
        names, places = self._order(column, found)
        if len(names) > _MOST:
            raise UserError(f"{self._where}: '{column}' has {len(names):,} different labels, more than {_MOST:,}")
        rows = [
            (UNKNOWN,) * len(names) if one_row is None else _hot(len(names), [places[name] for name in one_row])
            for one_row in said
        ]
        return Target(one.name, "labels", names, listed=column not in self._named), rows


def _hot(width: int, places: Sequence[int]) -> tuple[float, ...]:
    row = [0.0] * width
    for place in places:
        row[place] = 1.0
    return tuple(row)


def _index(value: float) -> int:
    return -1 if math.isnan(value) else int(value)


def _class(at: str, one: Asked, cells: Sequence[Cell]) -> Any:
    """A class, or none where nothing is said."""
    cell = cells[0].strip() if isinstance(cells[0], str) else cells[0]
    if cell is None or cell == "" or (isinstance(cell, int) and cell == -1):
        return None
    if isinstance(cell, list | dict | float | tuple):
        raise UserError(f"{at}: '{one.columns[0]}' is {str(cell)[:40]}, not one class; name a column with one class a row")
    return cell


def _labels(at: str, one: Asked, cells: Sequence[Cell]) -> Any:
    """A set of names, none where nothing is known; or 0, 1 or unknown for each column."""
    if len(cells) > 1:
        return tuple(_switch(at, column, cell) for column, cell in zip(one.columns, cells, strict=True))
    cell, column = cells[0], one.columns[0]
    if cell is None:
        return None
    if isinstance(cell, str):
        names: list[Any] = [name.strip() for name in re.split(r"[|;]", cell)] if cell.strip() else []
    elif isinstance(cell, list | tuple):
        names = list(cell)
    else:
        raise UserError(f"{at}: '{column}' is {str(cell)[:40]}; write the names of labels, with | or ; between them")
    for name in names:
        if name == "" or not isinstance(name, str | int):
            raise UserError(f"{at}: '{column}' is '{str(cell)[:60]}', where a label {'is empty' if name == '' else 'is no name'}")
        if names.count(name) > 1:
            raise UserError(f"{at}: '{column}' names the label '{name}' twice")
    return frozenset(names)


def _switch(at: str, column: str, cell: Cell) -> float:
    if cell is None or (isinstance(cell, str) and not cell.strip()) or (isinstance(cell, float) and math.isnan(cell)):
        return UNKNOWN
    value = _SWITCH.get(str(cell).strip().lower())
    if value is None:
        raise UserError(
            f"{at}: '{column}' is '{str(cell)[:40]}'; write 1 (it has the label), 0, or nothing where it is not known"
        )
    return value


def _values(at: str, one: Asked, cells: Sequence[Cell]) -> Any:
    return tuple(_number(at, column, cell) for column, cell in zip(one.columns, cells, strict=True))


def _number(at: str, column: str, cell: Cell) -> float:
    if cell is None or (isinstance(cell, str) and not cell.strip()) or (isinstance(cell, float) and math.isnan(cell)):
        return UNKNOWN
    try:
        value = math.inf if isinstance(cell, bool) or (isinstance(cell, str) and "_" in cell) else float(cell)
    except (TypeError, ValueError):
        value = math.inf
    if not abs(value) < 3e38:  # of 32-bit numbers
        raise UserError(f"{at}: '{column}' is '{str(cell)[:40]}'; write a number, or nothing where it is not known")
    return value


_READERS: dict[str, Callable[[str, Asked, Sequence[Cell]], Any]] = {"class": _class, "labels": _labels, "values": _values}
