"""First the head, then everything, as one run."""

from __future__ import annotations

from typing import Literal

from pydantic import Field

from trainer.config.learning import Factor, Layered
from trainer.config.schedules import Warmup


class Config(Layered):
    """Linear probing, then fine-tuning (LP-FT: Kumar et al. 2022)."""

    kind: Literal["probe"] = "probe"
    probe: Warmup = Field(0.5, description="how long the head learns alone: a share of the training, or an amount (5 epochs)")
    rate: Factor = Field(1.0, description="factor on the learning rate of the trunk")
