"""What the tasks have in common that compare logits with what is known of an image."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable

import torch
from torch import nn

from trainer.tasks.base import Batch


def tensors(output: object) -> list[torch.Tensor]:
    """The logits of a network's output: its main head first, then the auxiliary ones it has in training."""
    if isinstance(output, torch.Tensor):
        return [output]
    if isinstance(output, tuple | list):
        return [part for part in output if isinstance(part, torch.Tensor)]
    raise TypeError(f"a network returns logits or a tuple of logits, not {type(output).__name__}")


class Supervised:
    """Images in, logits out."""

    def run(self, module: nn.Module, batch: Batch) -> object:
        """The logits, with those of auxiliary heads in training."""
        return module(batch.images)

    def logits(self, output: object) -> torch.Tensor:
        """Those of the main head, [n, labels]."""
        return tensors(output)[0]

    @property
    def scale(self) -> torch.Tensor | None:
        """The logits are what is told."""
        return None


def with_auxiliary(output: object, weight: float, loss: Callable[[torch.Tensor], torch.Tensor]) -> torch.Tensor:
    """The loss [n] of the main head, and of auxiliary ones times `weight` (Szegedy et al. 2015, section 5)."""
    main, *auxiliary = tensors(output)
    losses = loss(main)
    for logits in auxiliary:
        losses = losses + weight * loss(logits)
    return losses


class SupervisedMeasure(ABC):
    """A measure that sends a batch through the network and adds its logits."""

    def __init__(self, task: Supervised) -> None:
        self._task = task

    def update(self, network: nn.Module, batch: Batch) -> None:
        """Send a batch through the network and add it."""
        self.add(self._task.logits(self._task.run(network, batch)).float(), batch)

    @abstractmethod
    def add(self, logits: torch.Tensor, batch: Batch) -> None:
        """Add a batch that has these logits [n, labels]."""
