"""The trunk begins to learn block by block."""

from __future__ import annotations

from typing import Literal

from pydantic import Field

from trainer.config.amounts import TrainingAmount
from trainer.config.learning import Layered


class Config(Layered):
    """Train the head, then also the last block, then the one before … (Howard and Ruder 2018, section 3.3)."""

    kind: Literal["gradual"] = "gradual"
    every: TrainingAmount = Field(description="after each, the next blocks begin to learn")
    blocks: int = Field(1, ge=1, description="blocks that begin at a time")
    limit: int | None = Field(None, ge=1, description="at most so many blocks, counted from the head; none: the whole trunk")
