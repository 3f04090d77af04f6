"""The sweep file: which run, which settings of it, and how many at once.

name: lr-search
run: pets.yaml                          # beside this file
set: {train.epochs: 5}                  # for every member; in place of the run file's
search: {kind: random, count: 20}       # or {kind: grid}, which needs no line, or {kind: list}
over:
  optimizer.lr: {low: 1e-5, high: 1e-2, scale: log}
  strategy.kind: [head, full]
parallel: 4
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import Field, ValidationError, field_validator

from launcher.sweep.matrix import SCRATCH, Cell, cells
from launcher.sweep.search import Range, Settings, drawn, grid, overlapping
from trainer.config import UserError, explain, yamlfile
from trainer.config.base import Kind, Section
from trainer.config.yamlfile import Document, Loc, override, unparse

Axis = dict[str, dict[str, Any]]
LONGEST = 89  # characters of a name: a member's has a dash and ten more
MOST = 100_000  # members
_NAME = re.compile(rf"[A-Za-z0-9][A-Za-z0-9._-]{{0,{LONGEST - 1}}}")
_OWN = "sweep."


class Grid(Kind):
    """Every combination of the values in `over`."""

    kind: Literal["grid"] = "grid"


class Random(Kind):
    """Combinations drawn by chance; a larger count keeps those there are."""

    kind: Literal["random"] = "random"
    count: int = Field(ge=1, le=MOST)
    seed: int = Field(0, ge=0, lt=2**32)


class List(Kind):
    """The combinations in `members`."""

    kind: Literal["list"] = "list"


class Matrix(Kind):
    """Every source on every target with every strategy; see `launcher.sweep.matrix`."""

    kind: Literal["matrix"] = "matrix"


class SweepFile(Section):
    """One sweep."""

    name: str
    run: str = Field(min_length=1, description="the run file; a relative path begins at the sweep file's folder")
    set: dict[str, Any] = Field(default_factory=dict, description="settings of every member, in place of the run file's")
    search: Annotated[Grid | Random | List | Matrix, Field(discriminator="kind")] = Grid()
    over: dict[str, Any] = Field(default_factory=dict, description="dotted key: values, or {low, high} of a random search")
    members: list[dict[str, Any]] = Field(default_factory=list, description="for search: {kind: list}, the settings of each")
    sources: Axis = Field(default_factory=dict, description="for search: {kind: matrix}, by name: the settings of the network")
    targets: Axis = Field(default_factory=dict, description="of the data")
    strategies: Axis = Field(default_factory=dict, description="of what learns")
    scratch: bool | dict[str, Any] = Field(
        False, description="also each source's network without its weights, with these settings"
    )
    parallel: int | None = Field(None, ge=1, description="at most so many members at once; none: as many as the cluster gives")
    best: str | None = Field(None, description="the metric that the members are compared by; none: the run's checkpoint.best")

    @field_validator("name")
    @classmethod
    def _name(cls, value: str) -> str:
        if not _NAME.fullmatch(value):
            raise ValueError(
                f"1 to {LONGEST} letters, digits, dots, dashes or underscores, beginning with a letter or a digit: "
                "the members' names begin with it"
            )
        return value


@dataclass(frozen=True)
class Plan:
    """A sweep file that was read: the settings of each member, and where each of them stands, by member and key.

    `labels`: what the members of a matrix are called by (source, target, strategy); none for other sweeps.
    """

    file: SweepFile
    document: Document
    run: Path
    settings: list[Settings]
    labels: list[dict[str, str]] | None = None

    def where(self, member: Settings, index: int, key: str) -> str:
        """`file:line` of a member's setting."""
        if self.file.search.kind == "list":
            return self.document.where(("members", index, key))
        if self.labels is not None:
            return self._in_matrix(self.labels[index], key)
        values = self.file.over[key]
        if isinstance(values, list) and member[key] in values:
            return self.document.where(("over", key, values.index(member[key])))
        return self.document.where(("over", key))

    def _in_matrix(self, labels: dict[str, str], key: str) -> str:
        """The line of the axis that has the setting; of what none of them has (model.weights of scratch), that of `scratch`."""
        file = self.file
        axes = (
            ("strategies", "strategy", file.strategies),
            ("targets", "target", file.targets),
            ("sources", "source", file.sources),
        )
        if isinstance(file.scratch, dict) and labels["strategy"] == SCRATCH and key in file.scratch:
            return self.document.where(("scratch", key))
        for section, axis, entries in axes:
            if key in entries.get(labels[axis], {}):
                return self.document.where((section, labels[axis], key))
        return self.document.where(("scratch",))


def read(path: Path, overrides: Sequence[str]) -> Plan:
    """Read and check a sweep file. An override is a run's setting, for all members; `sweep.key=value` is one of the sweep itself.

    Raises UserError with file and line.
    """
    document = yamlfile.read(path, "sweep file")
    for assignment in overrides:
        if assignment.startswith(_OWN):
            override(document, assignment.removeprefix(_OWN))
        else:
            _set(document, assignment)
    try:
        file = SweepFile.model_validate(document.value)
    except ValidationError as error:
        raise UserError(explain(error, document, SweepFile)) from None
    run = Path(file.run).expanduser()
    run = run if run.is_absolute() else path.parent / run
    if file.search.kind == "matrix":
        found = _matrix(file, document)
        return Plan(file, document, run, [cell.settings for cell in found], [cell.labels for cell in found])
    return Plan(file, document, run, _settings(file, document))


def resolved(plan: Plan) -> str:
    """The sweep file with every default and override written out; a sweep file itself, wherever it stands."""
    return unparse({**plan.file.model_dump(mode="json"), "run": str(plan.run.resolve())})


def _set(document: Document, assignment: str) -> None:
    """A setting of the command line becomes one of `set`."""
    given = Document({}, "")
    override(given, assignment)
    key = assignment.partition("=")[0]
    value: Any = given.value
    for part in key.split("."):
        value = value[part]
    there = document.value.setdefault("set", {})
    if not isinstance(there, dict):
        raise UserError(f"{document.where(('set',))}: 'set' must be a section with keys of its own, such as train.epochs: 5")
    there[key] = value
    document.lines[("set", key)] = f"override '{assignment}'"


def _matrix(file: SweepFile, document: Document) -> list[Cell]:
    """The members of a matrix. Raises UserError with the line of what does not fit."""
    for section in ("over", "members"):
        if getattr(file, section):
            raise UserError(
                f"{document.where((section,))}: '{section}' belongs to other searches; a matrix has sources, targets, strategies"
            )
    axes = {"sources": file.sources, "targets": file.targets, "strategies": file.strategies}
    for name, entries in axes.items():
        if not entries:
            example = {"sources": "{imagenet: {model.source: …}}", "targets": "{pets: {data.train: …}}"}.get(
                name, "{head: {strategy: {kind: head}}}"
            )
            raise UserError(f"{document.where((name,))}: a matrix needs '{name}', by name, such as {example}")
        for label, settings in entries.items():
            _keys(settings, (name, label), file, document)
    if isinstance(file.scratch, dict):
        _keys(file.scratch, ("scratch",), file, document)
    try:
        found = cells(file.sources, file.targets, file.strategies, file.scratch)
    except UserError as error:
        raise UserError(f"{document.where(('strategies',))}: {error}") from None
    _limited(len(found), document)
    return found


def _settings(file: SweepFile, document: Document) -> list[Settings]:
    """The settings of each member, from the kind of the search. Raises UserError with the line of what does not fit."""
    kind = file.search.kind
    if kind == "list":
        if file.over:
            raise UserError(f"{document.where(('over',))}: 'over' belongs to a grid or random search; a list has 'members'")
        if not file.members:
            raise UserError(f"{document.where(('search',))}: a list needs 'members', such as [{{optimizer.lr: 1e-3}}, …]")
        for index, settings in enumerate(file.members):
            _keys(settings, ("members", index), file, document)
        _limited(len(file.members), document)
        return list(file.members)
    for section in ("sources", "targets", "strategies"):
        if getattr(file, section):
            raise UserError(
                f"{document.where((section,))}: '{section}' belongs to search: {{kind: matrix}}, or to `graft matrix`"
            )
    if file.members:
        raise UserError(
            f"{document.where(('members',))}: 'members' belongs to search: {{kind: list}}; a {kind} search has 'over'"
        )
    if not file.over:
        raise UserError(f"{document.where(('search',))}: a {kind} search needs 'over', such as {{optimizer.lr: [1e-4, 1e-3]}}")
    _keys(file.over, ("over",), file, document)
    over = {key: _values(key, values, document, kind) for key, values in file.over.items()}
    if isinstance(file.search, Random):
        try:
            return drawn(over, file.search.count, file.search.seed)
        except UserError as error:
            raise UserError(f"{document.where(('search', 'count'))}: {error}") from None
    lists = {key: values for key, values in over.items() if not isinstance(values, Range)}
    count = 1
    for values in lists.values():
        count *= len(values)
    _limited(count, document)
    return grid(lists)


def _limited(count: int, document: Document) -> None:
    if count > MOST:
        raise UserError(
            f"{document.file}: {count:,} members; a sweep has at most {MOST:,}: try fewer values, or search by chance"
        )


def _keys(settings: Settings, at: Loc, file: SweepFile, document: Document) -> None:
    """Refuse keys that are no setting of a single run, or that are about the same setting."""
    for key in settings:
        where = document.where((*at, key))
        if key == "name":
            raise UserError(f"{where}: 'name' cannot be set: a member is called by the sweep's name and a hash of its settings")
        if not all(key.split(".")):
            raise UserError(f"{where}: '{key}' is no key; write it with dots, such as optimizer.lr")
        if key in file.set:
            raise UserError(f"{where}: '{key}' is searched and also stands in 'set' ({document.where(('set', key))}); keep one")
    both = overlapping(settings) or next(((a, b) for a in settings for b in file.set if b.startswith(f"{a}.")), None)
    if both is not None:
        raise UserError(f"{document.where((*at, both[0]))}: '{both[0]}' holds '{both[1]}'; set the one or the other")


def _values(key: str, values: Any, document: Document, kind: str) -> Sequence[Any] | Range:
    """The values to try for a key."""
    where = document.where(("over", key))
    if isinstance(values, dict):
        if values and not any(name in Range.model_fields for name in values):
            raise UserError(f"{where}: write keys with dots: '{key}.{next(iter(values))}: […]'")
        inner = {loc[2:]: line for loc, line in document.lines.items() if loc[:2] == ("over", key)}
        try:
            chosen = Range.model_validate(values)
        except ValidationError as error:
            lines = explain(error, Document(values, where, inner), Range)
            raise UserError("\n".join(line.replace(": ", f": over {key}: ", 1) for line in lines.splitlines())) from None
        if kind == "grid":
            raise UserError(
                f"{where}: '{key}' is a range, and a grid needs a list of values; "
                "write [1e-4, 1e-3], or search: {kind: random, count: 20}"
            )
        return chosen
    if not isinstance(values, list) or not values:
        raise UserError(f"{where}: '{key}' needs a list of values to try, such as [1e-4, 1e-3], not {values!r}")
    for index, value in enumerate(values):
        if any(value == other and type(value) is type(other) for other in values[:index]):
            raise UserError(f"{document.where(('over', key, index))}: '{key}' has {value!r} twice; keep one")
    return values
