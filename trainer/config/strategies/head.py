"""Only the head learns."""

from __future__ import annotations

from typing import Literal

from trainer.config.learning import Strategy


class Config(Strategy):
    """Freeze the trunk, train the head (and what was made new to adapt the input); frozen BatchNorm stays in eval mode."""

    kind: Literal["head"] = "head"
