"""What the model room hands over."""

from __future__ import annotations

from dataclasses import dataclass, field

from torch import nn

from trainer.spec import InputSpec


@dataclass
class LoadReport:
    """What became of a checkpoint's tensors, by name."""

    source: str
    matched: list[str] = field(default_factory=list)
    adapted: list[str] = field(default_factory=list)
    fresh: list[str] = field(default_factory=list)
    left_over: list[str] = field(default_factory=list)

    def lines(self) -> list[str]:
        """The report as a person reads it."""
        raise NotImplementedError


@dataclass
class Built:
    """An adapted network.

    `head`: dotted names of the output modules (main first, then auxiliary); `fresh`: names of the parameters that have no
    pretrained values; `spec`: what it takes.
    """

    network: nn.Module
    head: tuple[str, ...]
    fresh: tuple[str, ...]
    spec: InputSpec
    report: LoadReport
