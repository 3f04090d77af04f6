"""What a phase minimises: the losses of its task, added up."""

from __future__ import annotations

from typing import Any

import torch
from torch import nn

from trainer.tasks.base import Task


class Objective:
    """The sum of a task's losses."""

    def __init__(self, task: Task) -> None:
        self._task = task

    def __call__(self, module: nn.Module, batch: Any) -> torch.Tensor:
        """One value a sample, [n]."""
        losses = list(self._task.losses(self._task.run(module, batch), batch).values())
        return losses[0] if len(losses) == 1 else torch.stack(losses).sum(dim=0)
