"""`csv:FILE?image=COLUMN&label=COLUMN`: one row a sample, the path of its image relative to the file's folder."""

from __future__ import annotations

import csv
import os
import re
import stat
from collections.abc import Iterator
from pathlib import Path
from urllib.parse import parse_qsl

from trainer.config.errors import RefusedError, UserError, nearest
from trainer.config.sources.listing import Item, Listing

_DEFAULTS = {"image": ("image", "path", "file", "filename"), "label": ("label", "class")}
_MORE = ("weight", "group")  # columns that are read when they are asked for
_NUMBER = re.compile(r"[+-]?[0-9]+(\.[0-9]+)?")


def listing(rest: str) -> Listing:
    """The rows of FILE, sorted by path; a row that repeats another is dropped.

    A comma, semicolon or tab separates the columns, whichever the header has most of. Raises UserError for what is wrong and
    RefusedError for a path that leaves the file's folder, both with the row (the header is row 1).
    """
    name, _, query = rest.partition("?")
    file = Path(name).expanduser()
    if not file.is_file():
        siblings = [p.name for p in file.parent.glob("*.csv")] if file.parent.is_dir() else []
        raise UserError(f"{file}: no such CSV file{nearest(file.name, siblings)}")
    rows = _rows(file)
    _, header = next(rows, (1, []))
    columns = _columns(file, header, query)
    files = _Files(file)
    labels: dict[str, str] = {}
    first: dict[str, int] = {}
    more: dict[str, tuple[float, str]] = {}
    for row, values in rows:
        at = f"{file}, row {row}"
        if len(values) <= max(columns.values()):
            raise UserError(f"{at}: {len(values)} columns, the header has {len(header)}")
        path, label = (values[columns[what]].strip() for what in ("image", "label"))
        if not path:
            raise UserError(f"{at}: the path is empty")
        if not label:
            raise UserError(f"{at}: the label of '{path}' is empty")
        key = files.key(path, at)
        if labels.setdefault(key, label) != label:
            raise UserError(f"{at}: '{path}' is labelled '{label}', but '{labels[key]}' in row {first[key]}")
        first.setdefault(key, row)
        if len(columns) > 2:
            weight = _weight(values[columns["weight"]], at) if "weight" in columns else 1.0
            group = values[columns["group"]].strip() if "group" in columns else ""
            if "group" in columns and not group:
                raise UserError(f"{at}: the group of '{path}' is empty")
            if more.setdefault(key, (weight, group)) != (weight, group):
                raise UserError(f"{at}: '{path}' has another weight or group than in row {first[key]}")
    if not labels:
        raise UserError(f"{file}: no rows")
    classes = _sorted(set(labels.values()))
    place = {label: index for index, label in enumerate(classes)}
    items = tuple(Item(key, place[labels[key]], *more.get(key, (1.0, ""))) for key in sorted(labels))
    return Listing("csv", file.parent, tuple(classes), items)


def _rows(file: Path) -> Iterator[tuple[int, list[str]]]:
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


def _columns(file: Path, header: list[str], query: str) -> dict[str, int]:
    """The places of the image and label columns."""
    names = [name.strip() for name in header]
    asked = dict(parse_qsl(query, keep_blank_values=True))
    for key in asked:
        if key not in (*_DEFAULTS, *_MORE):
            raise UserError(f"csv:{file}?{query}: unknown '{key}'{nearest(key, [*_DEFAULTS, *_MORE])}")
    found: dict[str, int] = {}
    for what, defaults in {**_DEFAULTS, **{what: () for what in _MORE if what in asked}}.items():
        wanted = [asked[what]] if what in asked else list(defaults)
        name = next((name for name in wanted if name in names), None)
        if name is None:
            has = "; it has " + ", ".join(names) if any(names) else "; it has no header"
            raise UserError(f"{file}, row 1: no column {' or '.join(wanted)}{has}; write csv:FILE?{what}=COLUMN")
        if names.count(name) > 1:
            raise UserError(f"{file}, row 1: two columns are named '{name}'")
        found[what] = names.index(name)
    return found


def _weight(text: str, at: str) -> float:
    try:
        weight = float(text)
    except ValueError:
        weight = -1.0
    if not 0 <= weight < float("inf"):
        raise UserError(f"{at}: the weight is '{text}'; write a number from 0 on")
    return weight


class _Files:
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


def _sorted(labels: set[str]) -> list[str]:
    """By name, or by value where all look like numbers."""
    if all(_NUMBER.fullmatch(label) for label in labels):
        return sorted(labels, key=lambda label: (float(label), label))
    return sorted(labels)
