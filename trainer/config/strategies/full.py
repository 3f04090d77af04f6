"""Every parameter learns."""

from __future__ import annotations

from typing import Literal

from trainer.config.learning import Layered


class Config(Layered):
    """Fine-tune the whole network."""

    kind: Literal["full"] = "full"
