"""`csv:FILE?image=COLUMN&label=COLUMN&labels=COLUMN&value=COLUMN`: one row a sample, the path of its image relative to the file's
folder. What is said of an image (`label`, `labels`, `value`) is read as `formats.query.targets` says.
"""

from __future__ import annotations

import csv
import os
import stat
from collections.abc import Iterator
from pathlib import Path

from trainer.config.errors import RefusedError, UserError, nearest
from trainer.config.formats import query
from trainer.config.formats.query import Query
from trainer.config.formats.said import Reading, Said
from trainer.config.sources.listing import Item, Listing

_IMAGES, _LABELS = ("image", "path", "file", "filename"), ("label", "class")
_MORE = ("weight", "group")  # columns that are read when they are asked for


def listing(rest: str) -> Listing:
    """The rows of FILE, sorted by path; a row that repeats another is dropped.

    A comma, semicolon or tab separates the columns, whichever the header has most of. Raises UserError for what is wrong and
    RefusedError for a path that leaves the file's folder, both with the row (the header is row 1).
    """
    name, asked = query.parse("csv", rest, ("image", *query.SAID, *_MORE))
    file = Path(name).expanduser()
    if not file.is_file():
        siblings = [p.name for p in file.parent.glob("*.csv")] if file.parent.is_dir() else []
        raise UserError(f"{file}: no such CSV file{nearest(file.name, siblings)}")
    rows = rows_of(file)
    _, header = next(rows, (1, []))
    places, reading = _columns(file, [name.strip() for name in header], asked)
    image = places["?image"]
    spots = {column: places[column] for column in reading.columns}
    last = max(places.values())
    files = Files(file)
    found: dict[str, tuple[Said, float, str]] = {}
    first: dict[str, int] = {}
    for row, values in rows:
        at = f"{file}, row {row}"
        if len(values) <= last:
            raise UserError(f"{at}: {len(values)} columns, the header has {len(header)}")
        path = values[image].strip()
        if not path:
            raise UserError(f"{at}: the path is empty")
        said = reading.row(at, {column: values[spot] for column, spot in spots.items()})
        if reading.plain and said[0] is None:
            raise UserError(f"{at}: the label of '{path}' is empty")
        key = files.key(path, at)
        weight = _weight(values[places["?weight"]], at) if "?weight" in places else 1.0
        group = values[places["?group"]].strip() if "?group" in places else ""
        if "?group" in places and not group:
            raise UserError(f"{at}: the group of '{path}' is empty")
        before = found.setdefault(key, (said, weight, group))
        if before != (said, weight, group):
            _differ(at, path, before, (said, weight, group), first[key])
        first.setdefault(key, row)
    if not found:
        raise UserError(f"{file}: no rows")
    keys = sorted(found)
    targets, labels, numbers = reading.finish([found[key][0] for key in keys])
    items = tuple(Item(key, label, *found[key][1:], values) for key, label, values in zip(keys, labels, numbers, strict=True))
    classes = next((target.labels for target in targets if target.kind == "class"), ())
    return Listing("csv", file.parent, classes, items, targets=targets)


def _differ(at: str, path: str, before: tuple[Said, float, str], now: tuple[Said, float, str], row: int) -> None:
    """Raises UserError for a row that says another thing of an image than an earlier one."""
    if before[0] == now[0]:
        raise UserError(f"{at}: '{path}' has another weight or group than in row {row}")
    if len(now[0]) == 1 and isinstance(now[0][0], str):
        raise UserError(f"{at}: '{path}' is labelled '{now[0][0]}', but '{before[0][0]}' in row {row}")
    raise UserError(f"{at}: '{path}' is said to be something else than in row {row}")


def rows_of(file: Path) -> Iterator[tuple[int, list[str]]]:
    """(row, columns) of each row that is not blank."""
    try:
        with file.open(encoding="utf-8-sig", newline="") as stream:
            header = stream.readline()
            stream.seek(0)
            reader = csv.reader(stream, delimiter=max(",;\t", key=header.count), strict=True)
            row = 1
            for values in reader:
                if any(value.strip() for value in values):
                    yield row, values
                row = reader.line_num + 1
    except UnicodeDecodeError as error:
        raise UserError(f"{file}: not UTF-8 text: {error.reason} at byte {error.start}") from None
    except csv.Error as error:
        raise UserError(f"{file}, row {reader.line_num}: {error}") from None
    except OSError as error:
        raise UserError(f"{file}: cannot be read: {error.strerror}") from None


def _columns(file: Path, header: list[str], asked: Query) -> tuple[dict[str, int], Reading]:
    """The places of all columns that are read, of the image as `?image`, and how what is said of an image is read."""

    def place(what: str, name: str | None, wanted: str) -> int:
        if name is None:
            has = "; it has " + ", ".join(header) if any(header) else "; it has no header"
            raise UserError(f"{file}, row 1: no column {wanted}{has}; write csv:FILE?{what}=COLUMN")
        if header.count(name) > 1:
            raise UserError(f"{file}, row 1: two columns are named '{name}'")
        return header.index(name)

    def column(what: str, usual: tuple[str, ...]) -> tuple[str | None, str]:
        wanted = (asked.values[what],) if what in asked.values else usual
        return next((name for name in wanted if name in header), None), " or ".join(wanted)

    image = place("image", *column("image", _IMAGES))
    said = asked.said or (("label", header[place("label", *column("label", _LABELS))]),)
    reading = Reading(str(file), query.targets(f"{file}, row 1", said, header))
    found = {name: place("label", name, name) for name in reading.columns}
    return {**found, "?image": image, **{f"?{w}": place(w, *column(w, ())) for w in _MORE if w in asked.values}}, reading


def _weight(text: str, at: str) -> float:
    try:
        weight = float(text)
    except ValueError:
        weight = -1.0
    if not 0 <= weight < float("inf"):
        raise UserError(f"{at}: the weight is '{text}'; write a number from 0 on")
    return weight


class Files:
    """Checks that a row's file is there, and truly below the CSV's folder."""

    def __init__(self, file: Path) -> None:
        self.folder = file.parent
        self.real = os.path.realpath(file.parent)
        self.folders: dict[str, bool] = {}

    def inside(self, path: str) -> bool:
        real = os.path.realpath(path)
        return real == self.real or real.startswith(self.real.rstrip("/") + "/")

    def key(self, path: str, at: str) -> str:
        """The path, normalised, relative to the CSV's folder."""
        if os.path.isabs(path):  # noqa: PTH117
            raise RefusedError(f"{at}: '{path}' is absolute; write it relative to {self.folder}")
        key = os.path.normpath(path)
        if key == ".." or key.startswith("../"):
            raise RefusedError(f"{at}: '{path}' leaves {self.folder}")
        full = os.path.join(self.folder, key)  # noqa: PTH118 (a million rows: Path would double the time)
        try:
            mode = os.lstat(full).st_mode
            folder = os.path.dirname(full)  # noqa: PTH120
            if folder not in self.folders:
                self.folders[folder] = self.inside(folder)
            if not self.folders[folder] or (stat.S_ISLNK(mode) and not self.inside(full)):
                raise RefusedError(f"{at}: '{path}' is a link that leaves {self.folder}, to {os.path.realpath(full)}")
            mode = os.stat(full).st_mode  # noqa: PTH116
        except (OSError, ValueError):
            raise UserError(f"{at}: no such file: {path}") from None
        if not stat.S_ISREG(mode):
            raise UserError(f"{at}: not a file: {path}")
        return key
