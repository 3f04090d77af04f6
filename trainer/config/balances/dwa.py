"""Weights by how fast the losses fall."""

from __future__ import annotations

from typing import Literal

from pydantic import Field

from trainer.config.amounts import TrainingAmount, parse_amount
from trainer.config.balance import Balance


class Config(Balance):
    """More for losses that fell least of late: dynamic weight average (Liu, Johns and Davison 2019)."""

    kind: Literal["dwa"] = "dwa"
    temperature: float = Field(2.0, gt=0, description="how even the weights are; large: all alike")
    every: TrainingAmount = Field(
        default_factory=lambda: parse_amount("1 epoch", times=False), description="over how long the losses are averaged"
    )
