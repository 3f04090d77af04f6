"""What losses between layers have in common."""

from __future__ import annotations

from typing import Literal

from pydantic import Field

from trainer.config.base import Kind


class Paired(Kind):
    """Layers of the network beside layers of a reference: `losses.teacher`, or the trunk as it came (`start`)."""

    of: Literal["teacher", "start"] = "teacher"
    layers: Literal["auto"] | list[str] | dict[str, str] = Field(
        "auto",
        description="names, the same in both, or {layer of the network: layer of the reference}; auto: the last block of each, "
        "for attention the last of each resolution",
    )
