"""Weights that stay."""

from __future__ import annotations

from typing import Literal

from trainer.config.balance import Balance


class Config(Balance):
    """The losses count as `losses.weights` says."""

    kind: Literal["fixed"] = "fixed"
