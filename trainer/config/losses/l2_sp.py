"""The weights as they came."""

from __future__ import annotations

from typing import Literal

from pydantic import Field

from trainer.config.base import Kind


class Config(Kind):
    """Stay near the pretrained weights (Li, Grandvalet and Davoine 2018): L2-SP, in place of weight decay."""

    kind: Literal["l2_sp"] = "l2_sp"
    alpha: float = Field(0.01, ge=0, description="pull of what is pretrained towards its start")
    beta: float = Field(0.01, ge=0, description="pull of what is new towards zero")
