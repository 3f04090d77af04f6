"""Weights that make the gradients alike."""

from __future__ import annotations

from typing import ClassVar, Literal

from pydantic import Field

from trainer.config.balance import Balance


class Config(Balance):
    """Each further loss pulls as strongly as the first one: adaptive weights (Esser et al. 2021, equation 7)."""

    kind: Literal["match"] = "match"
    own_gradients: ClassVar[bool] = True
    most: float = Field(1e4, gt=0, description="the largest weight")
    layer: str | None = Field(
        None, description="where gradients are compared; none: the output layer, or the last one that learns"
    )
