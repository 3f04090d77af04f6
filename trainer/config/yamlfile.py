"""Reads a run file strictly and remembers the line of every key.

PyYAML's own constructors are not used: they take the last of two equal keys, read `1e-4` as text, `12:30` as 750 and `no` as
false, and follow aliases without a limit. Scalars here follow YAML 1.2's core schema; anchors, aliases and tags are refused.
"""

from __future__ import annotations

import re
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import yaml

from trainer.config.errors import UserError, nearest

MAX_BYTES = 1_000_000
MAX_DEPTH = 20
Loc = tuple[str | int, ...]

_INT = re.compile(r"[-+]?(0|[1-9][0-9_]*)")
_HEX = re.compile(r"0x[0-9a-fA-F]+")
_FLOAT = re.compile(r"[-+]?(\.[0-9]+|[0-9][0-9_]*(\.[0-9_]*)?)([eE][-+]?[0-9]+)?")
_CONSTANTS: dict[str, Any] = {
    "": None, "~": None, "null": None, "Null": None, "NULL": None,
    "true": True, "True": True, "TRUE": True, "false": False, "False": False, "FALSE": False,
    ".inf": float("inf"), "-.inf": float("-inf"), ".nan": float("nan"),
}  # fmt: skip


@dataclass
class Document:
    """A parsed YAML mapping and where each of its keys stands."""

    value: dict[str, Any]
    file: str
    lines: dict[Loc, str] = field(default_factory=dict)

    def where(self, loc: Loc) -> str:
        """`file:line` of the deepest known part of a location (or the override that set it)."""
        for size in range(len(loc), 0, -1):
            if loc[:size] in self.lines:
                return self.lines[loc[:size]]
        inner = [line for known, line in self.lines.items() if known[: len(loc)] == loc]
        return inner[0] if loc and inner else self.file


def scalar(text: str) -> Any:
    """The value of a plain (unquoted) scalar. A leading zero makes text, so that `0123` is neither 83 nor 123."""
    if text in _CONSTANTS:
        return _CONSTANTS[text]
    if _INT.fullmatch(text):
        return int(text.replace("_", ""))
    if _HEX.fullmatch(text):
        return int(text, 16)
    if _FLOAT.fullmatch(text) and not re.fullmatch(r"[-+]?0[0-9_]+", text):
        return float(text.replace("_", ""))
    return text


def read(path: Path, what: str = "run file") -> Document:
    """Read and parse a file; `what` it is meant to be stands in the messages. Raises UserError with file, line, nearest name."""
    try:
        text = path.read_text(encoding="utf-8")
    except FileNotFoundError:
        near = nearest(path.name, [p.name for p in path.parent.glob("*.y*ml")] if path.parent.is_dir() else [])
        raise UserError(f"{path}: no such {what}{near}") from None
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(f"{path}: cannot be read as a {what}: {error}") from None
    return parse(text, str(path))


def parse(text: str, file: str) -> Document:
    """Parse the text of a run file; raises UserError with file and line."""
    if len(text) > MAX_BYTES:
        raise UserError(f"{file}: {len(text):,} characters; a run file has at most {MAX_BYTES:,}")
    depth = 0
    try:
        for event in yaml.parse(text, Loader=yaml.SafeLoader):
            line = event.start_mark.line + 1 if event.start_mark else 0
            depth += isinstance(event, yaml.CollectionStartEvent) - isinstance(event, yaml.CollectionEndEvent)
            if depth > MAX_DEPTH:  # found while reading: PyYAML's time grows with the square of the depth
                raise UserError(f"{file}:{line}: nested too deeply; at most {MAX_DEPTH} levels")
            if isinstance(event, yaml.AliasEvent) or getattr(event, "anchor", None):
                raise UserError(f"{file}:{line}: anchors (&) and aliases (*) are not allowed; write the value out")
            tag = getattr(event, "tag", None)
            if tag is not None:
                raise UserError(f"{file}:{line}: the tag '{tag}' is not allowed; write a plain value")
        node = yaml.compose(text, Loader=yaml.SafeLoader)
    except yaml.YAMLError as error:
        mark = getattr(error, "problem_mark", None) or getattr(error, "context_mark", None)
        at = f":{mark.line + 1}" if mark else ""
        what = getattr(error, "problem", None) or getattr(error, "reason", None) or str(error)
        raise UserError(f"{file}{at}: not valid YAML: {what}") from None
    document = Document({}, file)
    if node is None:
        raise UserError(f"{file}: the file is empty; `graft schema` lists what a run file holds")
    if not isinstance(node, yaml.MappingNode):
        kind = "list" if isinstance(node, yaml.SequenceNode) else "single value"
        raise UserError(f"{file}:{node.start_mark.line + 1}: a run file is a mapping (`key: value` lines), not a {kind}")
    document.value = _construct(node, (), document)
    return document


def _construct(node: yaml.Node, loc: Loc, document: Document) -> Any:
    if isinstance(node, yaml.ScalarNode):
        return scalar(node.value) if node.style is None else node.value
    if isinstance(node, yaml.SequenceNode):
        items = []
        for index, item in enumerate(node.value):
            document.lines[(*loc, index)] = f"{document.file}:{item.start_mark.line + 1}"
            items.append(_construct(item, (*loc, index), document))
        return items
    assert isinstance(node, yaml.MappingNode)
    mapping: dict[str, Any] = {}
    for key_node, value_node in node.value:
        line = f"{document.file}:{key_node.start_mark.line + 1}"
        if not isinstance(key_node, yaml.ScalarNode):
            raise UserError(f"{line}: a key must be a plain word")
        key = str(key_node.value)
        if key == "<<":
            raise UserError(f"{line}: merge keys (<<) are not allowed; write the values out")
        if key in mapping:
            first = document.lines[(*loc, key)].rpartition(":")[2]
            dotted = ".".join(str(part) for part in (*loc, key))
            raise UserError(f"{line}: the key '{dotted}' stands twice (first in line {first}); keep one")
        document.lines[(*loc, key)] = line
        mapping[key] = _construct(value_node, (*loc, key), document)
    return mapping


_Base: type[yaml.SafeDumper] = getattr(yaml, "CSafeDumper", yaml.SafeDumper)  # libyaml's, where it is: four times as fast


class _Dumper(_Base):  # type: ignore[misc, valid-type]
    """Writes what `parse` reads back as the same value: PyYAML's own would leave the text `1e3` without quotes."""


def _text(dumper: yaml.SafeDumper, value: str) -> yaml.ScalarNode:
    return dumper.represent_scalar("tag:yaml.org,2002:str", value, style=None if scalar(value) == value else "'")


_Dumper.add_representer(str, _text)


def unparse(value: dict[str, Any]) -> str:
    """The text of a run file with these values."""
    return yaml.dump(value, Dumper=_Dumper, sort_keys=False, allow_unicode=True, width=120)


def override(document: Document, assignment: str) -> None:
    """Apply `a.b.c=value` in place; the value is YAML (`[1, 2]`, `{kind: head}`, `1e-3`)."""
    dotted, equals, text = assignment.partition("=")
    parts = dotted.split(".")
    if not equals or not all(parts):
        raise UserError(f"override '{assignment}': write key=value, such as train.epochs=5 or optimizer.lr=1e-3")
    here = f"override '{assignment}'"
    place(document, tuple(parts), parse("value: " + text, here).value["value"], here)


def place(document: Document, loc: tuple[str, ...], value: Any, where: str) -> None:
    """Put a value at a place of a document, sections and all; `where` is what messages then say of it."""
    target = document.value
    for depth, part in enumerate(loc[:-1]):
        inner = target.setdefault(part, {})
        if not isinstance(inner, dict):
            raise UserError(f"{where}: '{'.'.join(loc[: depth + 1])}' is {inner!r}, not a section with keys of its own")
        target = inner
    target[loc[-1]] = value
    for known in [k for k in document.lines if k[: len(loc)] == loc]:
        del document.lines[known]
    document.lines[loc] = where
