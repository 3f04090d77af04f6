"""Where an export goes: a folder that takes its name in one step, when all is in it."""

from __future__ import annotations

import os
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

from trainer.config import UserError
from trainer.rundir import RunDir
from trainer.rundir.folder import fsync_folder


@contextmanager
def new_folder(out: Path, *, ours: bool) -> Iterator[Path]:
    """An empty folder to write an export into; it becomes `out` at the end, and after an error nothing is left of it.

    `ours`: what is there is an export, which is replaced only then. Raises UserError when `out` is something else.
    """
    if out.exists() and not ours and (not out.is_dir() or any(out.iterdir())):
        raise UserError(f"{out} is there and is no export; name another folder")
    out.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=out.parent, prefix=f".{out.name}.", suffix=".tmp") as name:
        new = Path(name) / "new"
        new.mkdir()
        yield new
        _commit(new, out, Path(name) / "old")


def take_samples(folder: RunDir, step: int, new: Path) -> bool:
    """Put the sheet that the run made at a step into an export, as samples.png; whether there is one."""
    sheet = folder.samples / f"step-{step:08d}.png"
    if sheet.is_file():
        shutil.copyfile(sheet, new / "samples.png")
    return sheet.is_file()


def graft_version() -> str:
    """The version of graft, or `unknown` in a checkout that was not installed."""
    try:
        return version("graft-trainer")
    except PackageNotFoundError:
        return "unknown"


def _commit(new: Path, out: Path, old: Path) -> None:
    """Everything durable, then the name; what was there goes afterwards."""
    for path in new.rglob("*"):
        if path.is_dir():
            fsync_folder(path)
            continue
        with path.open("rb") as file:
            os.fsync(file.fileno())
    fsync_folder(new)
    new.chmod(0o755)
    if out.exists():
        out.rename(old)
    new.rename(out)
    fsync_folder(out.parent)
