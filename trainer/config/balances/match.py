"""Weights that make the gradients alike."""

from __future__ import annotations

from typing import Literal

from pydantic import Field

from trainer.config.base import Kind


class Config(Kind):
    """Each further loss pulls as strongly as the first one: adaptive weights (Esser et al. 2021, equation 7)."""

    kind: Literal["match"] = "match"
    most: float = Field(1e4, gt=0, description="the largest weight")
    layer: str | None = Field(None, description="where gradients are compared; none: the last layer that learns")
