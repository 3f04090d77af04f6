"""Weights by the size of the gradients."""

from __future__ import annotations

from typing import ClassVar, Literal

from pydantic import Field

from trainer.config.balance import Balance


class Config(Balance):
    """Gradients of like size at a shared layer, larger for losses that fall slowly: GradNorm (Chen et al. 2018)."""

    kind: Literal["gradnorm"] = "gradnorm"
    own_gradients: ClassVar[bool] = True
    alpha: float = Field(1.5, ge=0, description="how strongly losses that fall slowly are helped; 0: gradients of equal size")
    rate: float = Field(0.025, gt=0, description="learning rate of the weights")
    layer: str | None = Field(None, description="the shared layer; none: the last layer of the trunk that learns from the start")
