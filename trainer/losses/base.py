"""What the losses beside the task's are given, and what they answer."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import nn

from trainer.losses.taps import Taps
from trainer.spec import InputSpec, Output


@dataclass
class Reference:
    """A network that stays as it is: a teacher, or the trunk as it came.

    `answer(images)` sends images, normalised for the network that learns, through it: its output. `blocks`: its blocks, from the
    input to the head. `units` [2, all labels]: its logits, times the first and plus the second row, are those of the network that
    learns, where both tell numbers in units of their own.
    """

    network: nn.Module
    taps: Taps
    blocks: Sequence[str]
    answer: Callable[[torch.Tensor], Any]
    units: torch.Tensor | None = None

    def told(self, logits: torch.Tensor) -> torch.Tensor:
        """Its logits [n, all labels] in the units of the network that learns."""
        return logits if self.units is None else logits.float() * self.units[0] + self.units[1]


@dataclass
class Ground:
    """What a loss may look at when it is made.

    `network` learns, `taps` are on it, `blocks` are its trunk's, from the input to the head. `held`: what of it learns and is
    pretrained, each with the values it came with; `new`: what learns and is not. `references`: `teacher` and `start`, where they
    are wanted.
    """

    network: nn.Module
    outputs: tuple[Output, ...]
    spec: InputSpec
    taps: Taps
    blocks: Sequence[str]
    references: dict[str, Reference] = field(default_factory=dict)
    held: list[tuple[torch.Tensor, torch.Tensor]] = field(default_factory=list)
    new: list[torch.Tensor] = field(default_factory=list)


@dataclass
class Seen:
    """A micro-batch as the losses see it: the logits [n, labels] of the network and, in `answers`, of the references."""

    logits: torch.Tensor
    answers: dict[str, torch.Tensor]


class Loss(nn.Module):
    """A loss beside the task's: `forward(Seen)` gives one value a sample, [n]; what it learns itself are its parameters."""

    def __call__(self, seen: Seen) -> torch.Tensor:
        """[n]."""
        losses: torch.Tensor = super().__call__(seen)
        return losses
