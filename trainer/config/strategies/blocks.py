"""The last blocks learn."""

from __future__ import annotations

from typing import Literal

from pydantic import Field

from trainer.config.learning import Layered


class Config(Layered):
    """Train the head and the last blocks of the trunk; the rest is frozen."""

    kind: Literal["blocks"] = "blocks"
    last: int = Field(ge=1, description="how many blocks, counted from the head")
