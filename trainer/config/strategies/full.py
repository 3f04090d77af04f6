"""Every parameter learns."""

from __future__ import annotations

from typing import Literal

from trainer.config.base import Kind


class Config(Kind):
    """Fine-tune the whole network."""

    kind: Literal["full"] = "full"
