"""What the loop's phases are made of where a network learns against one that came with it."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Protocol, runtime_checkable

import torch
from torch import nn

from trainer.spec import InputSpec
from trainer.tasks.base import Makes


class Opposing(Protocol):
    """What a critic minimises: its loss, as that of a phase, with all that a phase has beside it."""

    columns: tuple[str, ...]

    def __call__(self, module: nn.Module, batch: Any) -> torch.Tensor: ...
    def stage(self, samples: int) -> bool: ...
    def settle(self, samples: int, *, good: bool) -> None: ...


@runtime_checkable
class Duels(Makes, Protocol):
    """One whose network learns against a critic that came with it."""

    def fit(self, spec: InputSpec, network: nn.Module, seed: int) -> None:
        """Take the network that was built and what it makes, before anything is run."""

    def oppose(
        self, critic: nn.Module, global_batch: int, sum_over_ranks: Callable[[torch.Tensor], torch.Tensor]
    ) -> Opposing:  # fmt: skip
        """Learn against this network, which is on its device; what it is to minimise itself."""
