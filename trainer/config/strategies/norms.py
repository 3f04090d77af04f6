"""The normalisation layers learn."""

from __future__ import annotations

from typing import Literal

from trainer.config.learning import Strategy


class Config(Strategy):
    """Train the head, and the scales and shifts of normalisation layers (Frankle, Schwab and Morcos 2021)."""

    kind: Literal["norms"] = "norms"
