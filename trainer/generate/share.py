"""Files that are made batch by batch, each with a place of its own in a folder, by one process or by several side by side."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import TypeVar

import torch

from trainer.config import GraftError, UserError
from trainer.gallery import picture

T = TypeVar("T")


def share(asked: Sequence[T], batch: int, rank: int, world: int) -> list[Sequence[T]]:
    """The batches of a process: cut before they are shared out, so that no image depends on the number of processes."""
    return [asked[start : start + batch] for start in range(rank * batch, len(asked), world * batch)]


def prepare(out: Path, places: Iterable[Path]) -> None:
    """Make the folder. Raises UserError where one of these places below it is taken."""
    there = [place for place in places if (out / place).exists()]
    if out.exists() and not out.is_dir():
        raise UserError(f"--out: {out} is a file; name a folder")
    if there:
        raise UserError(f"{out} has {len(there)} of these images already, {there[0]} for one; name another folder with --out")
    out.mkdir(parents=True, exist_ok=True)


def write(path: Path, image: torch.Tensor) -> None:
    """Write an image as PNG, under its name once it is whole."""
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.name}.tmp")
    picture(image).save(temporary, "PNG")
    temporary.rename(path)


def side_by_side(command: str, argv: Sequence[str], processes: int) -> None:
    """Run a command of graft as several processes, each with its share. Raises UserError when one fails."""
    program = [sys.executable, "-m", "trainer", command, *argv]
    threads = max(1, (os.cpu_count() or 1) // processes)
    shares = [{"RANK": str(rank), "WORLD_SIZE": str(processes), "OMP_NUM_THREADS": str(threads)} for rank in range(processes)]
    started = [subprocess.Popen(program, env={**os.environ, **share}) for share in shares]
    codes = [process.wait() for process in started]
    failed = [rank for rank, code in enumerate(codes) if code]
    if failed:
        raise GraftError(f"process {failed[0]} of {processes} failed; what the others made is there")
