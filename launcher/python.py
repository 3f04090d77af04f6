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
    ours = Path(trainer.__path__[0]).parent.resolve()
    here = Path.cwd()
    shadows = [here / f"{name}{suffix}" for name in ("trainer", "launcher") for suffix in ("", ".py")]
    if here.resolve() != ours and any(path.exists() for path in shadows):
        return {**os.environ, "PYTHONSAFEPATH": "1"}
    return dict(os.environ)
