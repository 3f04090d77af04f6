"""Features of a teacher, or of the trunk as it came."""

from __future__ import annotations

from typing import Literal

from pydantic import Field, model_validator

from trainer.config.paired import Paired


class Config(Paired):
    """Have the features of a reference: hints (Romero et al. 2015), or those of the trunk as it came (Li et al. 2019)."""

    kind: Literal["features"] = "features"
    project: Literal["auto", "always", "never"] = Field(
        "auto", description="a learned projection to the reference's channels; auto: towards a teacher, not towards the start"
    )
    normalize: bool = Field(False, description="compare directions: the features of each position at unit length")

    @model_validator(mode="after")
    def _means_something(self) -> Config:
        if self.of == "start" and self.project == "always":
            raise ValueError("a learned projection between the trunk and its start would only undo what is learnt; leave it out")
        return self
