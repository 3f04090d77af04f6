"""One module a task, found by file name: `build(config, classes, counts) -> Task`."""

from __future__ import annotations

import importlib
from collections.abc import Sequence

from trainer.config.base import Kind
from trainer.tasks.base import Task


def build_task(config: Kind, classes: Sequence[str], counts: Sequence[int]) -> Task:
    """The task of a run; `counts` are the training samples a class."""
    task: Task = importlib.import_module(f"trainer.tasks.{config.kind}").build(config, classes, counts)
    return task
