"""How the trainer is started, so that it is ours whatever the working directory holds."""

from __future__ import annotations

import os
import sys
from pathlib import Path

import trainer


def trainer_command(*arguments: str) -> list[str]:
    """`python -m trainer …` with this interpreter."""
    return [sys.executable, "-m", "trainer", *arguments]


def environment() -> dict[str, str]:
    """The environment for it.

    `python -m` looks into the working directory first: a `trainer.py` of the user's own there would be run in place of ours. So
    the working directory is left out of the search, but only then: networks (`python:package.module:factory`) are found in it.
    """
    return {**os.environ, "PYTHONSAFEPATH": "1"} if shadowed(Path.cwd()) else dict(os.environ)


def shadowed(folder: Path) -> bool:
    """Whether `python -m trainer`, started in a folder, would find another trainer or launcher than this one there."""
    found = [folder / f"{name}{suffix}" for name in ("trainer", "launcher") for suffix in ("", ".py")]
    return folder.resolve() != root() and any(path.exists() for path in found)


def root() -> Path:
    """The folder that this trainer and this launcher are imported from."""
    return Path(trainer.__path__[0]).parent.resolve()
