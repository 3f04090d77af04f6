"""What stands in the members' folders, and writing it: a thousand of them in a moment."""

from __future__ import annotations

import contextlib
import fcntl
import json
import os
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path

from launcher.snapshot import Code
from launcher.sweep.file import resolved
from launcher.sweep.members import Member, Sweep, text_of
from trainer.config import RefusedError, changes
from trainer.config.model import Model
from trainer.rundir import write_atomically

_SHOWN = 5


@dataclass(frozen=True)
class Standing:
    """Which members are `done`, which are `new`: to be started, or to go on."""

    done: list[Member]
    new: list[Member]


def standing(sweep: Sweep, code: Code | None) -> Standing:
    """Look at the members' folders. Raises RefusedError where one holds a run with other settings.

    `code`: the sweep's snapshot, made or to be made; the file of a member's network stands there, unless the member began
    with the one outside.
    """
    found = Standing([], [])
    refused: list[str] = []
    sources: dict[str, str] = {}
    for member in sweep.members:
        rundir = member.rundir
        moved = member if code is None else _moved(member, code, sources, sweep.texts)
        either = [moved, member]
        try:
            held = rundir.config.read_text(encoding="utf-8")
        except OSError:
            found.new.append(moved)
            continue
        same = [one for one in either if one.text == held]
        if not same and not rundir.untouched():
            there = rundir.load()
            same = [one for one in either if not changes(there, one.run)]
            if not same:
                refused.append(f"{rundir.path}:\n    " + "\n    ".join(changes(there, moved.run)))
                continue
        marker = rundir.marker()
        done = marker is not None and marker.state == "DONE"
        (found.done if done else found.new).append(same[0] if same and not rundir.untouched() else moved)
    if refused:
        more = f"\n  and {len(refused) - _SHOWN} more" if len(refused) > _SHOWN else ""
        raise RefusedError(
            "members hold runs with other settings (which their names do not tell: they come from another version of graft, or "
            "were changed by hand):\n  " + "\n  ".join(refused[:_SHOWN]) + more + "\ngive the sweep another name: sweep.name=…"
        )
    return found


def _moved(member: Member, code: Code, sources: dict[str, str], texts: dict[str, str]) -> Member:
    """The member with its network's file in the snapshot, so that editing it while members wait changes nothing."""

    def moved(model: Model) -> Model:
        scheme, _, rest = model.source.partition(":")
        file, _, factory = rest.rpartition(":")
        if scheme != "python" or not Path(file).is_absolute():
            return model
        if model.source not in sources:
            sources[model.source] = f"python:{code.moved(Path(file))}:{factory}"
        return model.model_copy(update={"source": sources[model.source]})

    if all(moved(model).source == model.source for model in member.run.models.values()):
        return member
    run = member.run.moved(moved)
    return replace(member, run=run, text=text_of(run, texts))


def write_sweep(sweep: Sweep) -> None:
    """Write the sweep's own folder: the resolved file and the members. Raises RefusedError when it cannot be written."""
    folder = sweep.folder
    plan = {"best": sweep.best, "members": [{"name": member.name, "settings": member.shown} for member in sweep.members]}
    try:
        folder.logs.mkdir(parents=True, exist_ok=True)
        write_atomically(folder.config, resolved(sweep.plan))
        write_atomically(folder.members, json.dumps(plan) + "\n")
    except OSError as error:
        raise RefusedError(
            f"the sweep's folder {folder.path} cannot be written: {error.strerror}; choose another with --runs"
        ) from None


def write_members(members: Sequence[Member]) -> None:
    """Write the members' run folders: their run files; what else is in them is made by their start.

    Nothing is synced to the disk here, which takes a thousand times as long: after a crash of the machine the same command
    finds what is missing, and a run file that is torn is refused when its member starts.
    """
    try:
        for member in members:
            config = member.rundir.config
            if not config.is_file():
                config.parent.mkdir(parents=True, exist_ok=True)
                config.write_text(member.text, encoding="utf-8")
            elif config.read_text(encoding="utf-8") != member.text:
                temporary = config.with_name(".run.yaml.tmp")
                temporary.write_text(member.text, encoding="utf-8")
                temporary.replace(config)
    except OSError as error:
        raise RefusedError(f"{error.filename}: cannot be written: {error.strerror}; choose another folder with --runs") from None


@contextmanager
def alone(sweep: Sweep) -> Iterator[None]:
    """One command for a sweep at a time, as far as the file system has locks."""
    sweep.folder.logs.mkdir(parents=True, exist_ok=True)
    descriptor = os.open(sweep.folder.logs / "sweep.lock", os.O_CREAT | os.O_RDWR, 0o644)
    try:
        with contextlib.suppress(OSError):
            try:
                fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                raise RefusedError(f"another `graft sweep` works on {sweep.name}; wait for it or stop it first") from None
        yield
    finally:
        os.close(descriptor)
