"""The answers of a teacher."""

from __future__ import annotations

from typing import Literal

from pydantic import Field

from trainer.config.base import Kind


class Config(Kind):
    """Answer as the teacher does (Hinton, Vinyals and Dean 2015)."""

    kind: Literal["logits"] = "logits"
    temperature: float = Field(4.0, gt=0, description="softens the answers of both; the loss is scaled by its square")
    hard: bool = Field(False, description="learn the teacher's answer alone (Touvron et al. 2021), not how sure it is")
