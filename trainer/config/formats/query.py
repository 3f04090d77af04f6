"""What stands behind the question mark of a source."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from urllib.parse import parse_qsl

from trainer.config.errors import UserError, nearest
from trainer.config.targets import Kind

SAID: dict[str, Kind] = {"label": "class", "labels": "labels", "value": "values"}  # keys of what is said of an image


@dataclass(frozen=True)
class Query:
    """The values by key, and what was written of each target: (key, value) in the order of `SAID`."""

    values: dict[str, str]
    said: tuple[tuple[str, str], ...] = ()


@dataclass(frozen=True)
class Asked:
    """A target that a source is asked for, and the columns (or fields) that it is read from."""

    name: str
    kind: Kind
    columns: tuple[str, ...]


def parse(scheme: str, rest: str, known: Sequence[str]) -> tuple[str, Query]:
    """(the part before it, what it asks). Raises UserError for an unknown key, one that repeats or has no value.

    The keys of targets that are known (`labels`, `value`) may come several times, for a target each.
    """
    name, _, query = rest.partition("?")
    # jpg;png is one value: only & separates
    pairs = parse_qsl(query, keep_blank_values=True, separator="&")
    values: dict[str, str] = {}
    for key, value in pairs:
        if key not in known:
            raise UserError(f"{scheme}:{rest}: unknown '{key}'{nearest(key, known)}")
        if key in values and key not in ("labels", "value"):
            raise UserError(f"{scheme}:{rest}: '{key}' is given twice")
        if not value:
            raise UserError(f"{scheme}:{rest}: '{key}' has no value")
        values[key] = value
    several = "labels" in known
    said = [(key, value) for wanted in SAID for key, value in pairs if key == wanted] if several else []
    return name, Query(values, tuple(said))


def targets(where: str, said: Sequence[tuple[str, str]], columns: Sequence[str] | None = None) -> list[Asked]:
    """What is asked for, target by target: `[NAME:]COLUMN[,COLUMN …]` behind each key; `columns` are those that there are.

    `label=a,b` and `value=a,b` are a target each; `value=NAME:a,b` is one of two numbers; `labels=a` is a column of names,
    `labels=a,b` one target of columns of 0 and 1. The only target, when it is a class, has no name. Raises UserError.
    """
    found: list[Asked] = []
    for key, text in said:
        kind = SAID[key]
        name, parts = _parts(text, columns)
        if len(set(parts)) < len(parts):
            raise UserError(f"{where}: ?{key}={text} names a column twice")
        if columns is not None:
            for part in parts:
                if part not in columns:
                    has = "; it has " + ", ".join(columns) if any(columns) else "; it has no header"
                    raise UserError(f"{where}: no column '{part}' for ?{key}={text}{nearest(part, columns)}{has}")
        if kind == "class" and name and len(parts) > 1:
            raise UserError(
                f"{where}: ?label={text} gives one name to {len(parts)} columns of classes; write label={','.join(parts)}"
            )
        if kind == "labels":
            found.append(Asked(name or (short(parts[0]) if len(parts) == 1 else "labels"), kind, tuple(parts)))
        elif name and kind == "values":
            found.append(Asked(name, kind, tuple(parts)))
        else:
            found += [Asked(name or short(part), kind, (part,)) for part in parts]
    names = [one.name for one in found]
    for name in names:
        if names.count(name) > 1:
            raise UserError(
                f"{where}: two targets are called '{name}'; write a name before the columns, such as value=NAME:{name}"
            )
    if len(found) == 1 and found[0].kind == "class":
        return [Asked("", "class", found[0].columns)]
    return found


def _parts(text: str, columns: Sequence[str] | None) -> tuple[str, list[str]]:
    """(name or nothing, columns); a column whose own name has a comma or a colon is meant when it is there."""
    if columns is not None and text in columns:
        return "", [text]
    name, colon, rest = text.partition(":")
    if not colon:
        name, rest = "", text
    if columns is not None and rest in columns:
        return name.strip(), [rest]
    return name.strip(), [part.strip() for part in rest.split(",")]


def short(column: str) -> str:
    """What a column says, in a word: of a field in JSON (`json.age`) its last part."""
    return column.rpartition(".")[2] if column.startswith("json.") else column
