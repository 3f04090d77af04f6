"""From a sweep file to its members: runs of their own, checked before anything is written."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from launcher.sweep.file import Plan, read
from launcher.sweep.search import Settings
from trainer.config import Run, UserError, nearest
from trainer.config.load import check, flat, free, learnt
from trainer.config.yamlfile import Document, parse, place, unparse
from trainer.rundir import RunDir
from trainer.rundir.sweep import SweepDir, as_text

_SHOWN = 10  # mistakes


@dataclass(frozen=True)
class Member:
    """One run of a sweep. `settings` are those that were searched, as the run took them; `text` is its run file.

    `labels`: the names that a matrix has for them, which is what people are shown.
    """

    run: Run
    rundir: RunDir
    settings: Settings
    text: str
    labels: dict[str, str] | None = None

    @property
    def shown(self) -> Settings:
        return dict(self.labels) if self.labels is not None else self.settings

    @property
    def name(self) -> str:
        return self.run.name


@dataclass(frozen=True)
class Sweep:
    """A sweep that was checked; nothing was written yet. `best`: the metric that its members are compared by.

    `texts` are the sections that were written, so that none is written twice (`text_of`).
    """

    plan: Plan
    folder: SweepDir
    members: list[Member]
    best: str
    texts: dict[str, str]

    @property
    def name(self) -> str:
        return self.plan.file.name


def load_sweep(path: Path, overrides: list[str], runs: Path) -> Sweep:
    """Read a sweep file (or that of a sweep's folder, or name) and check every member. Raises UserError with all mistakes."""
    for known in (SweepDir(path), SweepDir(runs / path)):
        if path.suffix not in (".yaml", ".yml") and known.exists():
            path = known.config
            break
    plan = read(path, overrides)
    folder = SweepDir((runs / plan.file.name).resolve())
    if RunDir(folder.path).exists():
        raise UserError(
            f"{plan.document.where(('name',))}: there is a run called {plan.file.name} in {runs}; choose another name"
        )
    texts: dict[str, str] = {}
    members = _members(plan, folder, texts)
    names = members[0].run.task.measured()
    metrics = [f"val/{metric}" for metric in names or ()]
    best = plan.file.best or members[0].run.checkpoint.best
    if names is not None and best not in metrics:
        raise UserError(
            f"{plan.document.where(('best',))}: best is '{best}', which the run does not measure{nearest(best, metrics)}"
        )
    return Sweep(plan, folder, members, best, texts)


def member_name(sweep: str, run: Run, settings: Settings) -> str:
    """`<sweep>-<hash>`.

    The hash is of all settings that decide what the member learns (of the run file and the searched ones alike, as
    `trainer.config.load.learnt` gives them), and of those that were searched although they do not (workers, micro-batch). So it
    stays when values are reordered or added, when a searched key is written at its default, and when the run file changes what
    may change between attempts (resources, tracking); any other change of the run file gives members of another name.
    """
    deciding = {**learnt(run), **{f"searched {key}": value for key, value in settings.items() if free(key)}}
    text = json.dumps(deciding, sort_keys=True, separators=(",", ":"))
    return f"{sweep}-{hashlib.sha256(text.encode()).hexdigest()[:10]}"


def _members(plan: Plan, folder: SweepDir, texts: dict[str, str]) -> list[Member]:
    base = _base(plan)
    wrong: dict[str, list[int]] = {}
    found: dict[str, Member] = {}
    numbers: dict[str, int] = {}
    for index, settings in enumerate(plan.settings):
        try:
            run = check(_with(base, plan, settings, index))
        except UserError as error:
            for line in str(error).splitlines():
                wrong.setdefault(line, []).append(index)
            continue
        settings = _taken(run, settings)
        run = _named(run, plan.file.name, settings)
        if run.name in found:
            first = plan.settings[numbers[run.name]]
            raise UserError(
                f"{plan.document.where(('members', index))}: two members are the same run: "
                f"{shown(first)} and {shown(plan.settings[index])}; keep one"
            )
        numbers[run.name] = index
        found[run.name] = Member(
            run, folder.member(run.name), settings, text_of(run, texts), plan.labels[index] if plan.labels else None
        )
    if wrong:
        raise UserError(_mistakes(wrong, plan))
    return list(found.values())


def _base(plan: Plan) -> Document:
    """The run file with the settings of `set`."""
    try:
        text = plan.run.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        beside = [p.name for p in plan.run.parent.glob("*.y*ml")] if plan.run.parent.is_dir() else []
        near = nearest(plan.run.name, beside) if isinstance(error, FileNotFoundError) else f": {error}"
        raise UserError(f"{plan.document.where(('run',))}: {plan.run}: no such run file{near}") from None
    base = parse(text, str(plan.run))
    base.value.setdefault("name", plan.file.name)  # the members have names of their own
    for key, value in plan.file.set.items():
        place(base, tuple(key.split(".")), value, plan.document.where(("set", key)))
    return base


def _with(base: Document, plan: Plan, settings: Settings, index: int) -> Document:
    """The run file with a member's settings; what is not set is shared with the run file, not copied."""
    value = dict(base.value)
    for key in settings:
        inner, *parts = value, *key.split(".")[:-1]
        for part in parts:
            if not isinstance(inner.get(part), dict):
                break
            inner[part] = dict(inner[part])
            inner = inner[part]
    document = Document(value, base.file, dict(base.lines))
    for key, setting in settings.items():
        place(document, tuple(key.split(".")), setting, plan.where(settings, index, key))
    return document


def _taken(run: Run, settings: Settings) -> Settings:
    """The settings as the run took them: 1 and 1.0 of a number are one value. Sections stay as they were written."""
    values = flat(run.model_dump(mode="json"))
    return {key: values.get(key, given) for key, given in settings.items()}


def _named(run: Run, sweep: str, settings: Settings) -> Run:
    changed: dict[str, Any] = {"name": member_name(sweep, run, settings)}
    if run.track.wandb is not None and run.track.wandb.group is None:
        wandb = run.track.wandb.model_copy(update={"group": sweep})
        changed["track"] = run.track.model_copy(update={"wandb": wandb})
    return run.model_copy(update=changed)


def text_of(run: Run, texts: dict[str, str]) -> str:
    """The resolved run file, as `dump` writes it; sections that were written before are not written again."""
    parts = []
    for section in run.model_dump(mode="json").items():
        known = json.dumps(section)
        if known not in texts:
            texts[known] = unparse(dict([section]))
        parts.append(texts[known])
    return "".join(parts)


def shown(settings: Mapping[str, Any]) -> str:
    """`optimizer.lr=0.001 train.seed=1`."""
    return " ".join(f"{key}={as_text(value)}" for key, value in settings.items()) or "the run file as it is"


def _mistakes(wrong: dict[str, list[int]], plan: Plan) -> str:
    """One line a mistake, with the member where not all have it."""
    lines = []
    for line, indices in list(wrong.items())[:_SHOWN]:
        if len(indices) == len(plan.settings):
            lines.append(line)
        else:
            of = f"{len(indices)} of {len(plan.settings)} members, " if len(indices) > 1 else ""
            lines.append(f"{line} ({of}{shown(plan.settings[indices[0]])})")
    if len(wrong) > _SHOWN:
        lines.append(f"and {len(wrong) - _SHOWN} more mistakes")
    return "\n".join(lines)
