"""Weights by learned uncertainty."""

from __future__ import annotations

from typing import Literal

from pydantic import Field

from trainer.config.balance import Balance


class Config(Balance):
    """A learned variance for each loss, which is divided by it (Kendall, Gal and Cipolla 2018)."""

    kind: Literal["uncertainty"] = "uncertainty"
    rate: float = Field(1.0, gt=0, description="factor on the learning rate of the variances")
