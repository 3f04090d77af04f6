"""One module a task, found by file name: `build(config, facts) -> Task`."""

from __future__ import annotations

import importlib

from trainer.config.targets import Facts
from trainer.config.task import Task as Config
from trainer.tasks.base import Task


def build_task(config: Config, facts: Facts) -> Task:
    """The task of a run; `facts` is what it must know of the training samples. Raises UserError where those are of another."""
    task: Task = importlib.import_module(f"trainer.tasks.{config.kind}").build(config, facts)
    return task
