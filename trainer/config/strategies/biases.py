"""The biases learn."""

from __future__ import annotations

from typing import Literal

from trainer.config.learning import Strategy


class Config(Strategy):
    """Train the head and all biases (BitFit: Ben Zaken, Goldberg and Ravfogel 2022)."""

    kind: Literal["biases"] = "biases"
