"""Weights that stay."""

from __future__ import annotations

from typing import Literal

from trainer.config.base import Kind


class Config(Kind):
    """The losses count as `losses.weights` says."""

    kind: Literal["fixed"] = "fixed"
