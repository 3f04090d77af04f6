"""The task of labels that go with each other."""

from __future__ import annotations

from typing import Annotated, ClassVar, Literal

from pydantic import Field

from trainer.config.targets import Facts, Known, only
from trainer.config.task import Supervised


class Config(Supervised):
    """Say of each label whether an image has it."""

    kind: Literal["multilabel"] = "multilabel"
    metrics: ClassVar[tuple[str, ...]] = ("loss", "map", "f1", "micro_f1", "accuracy", "exact")
    best: ClassVar[str] = "map"
    loss: Literal["bce", "focal", "asymmetric"] = Field(
        "bce",
        description="bce: each label by itself; focal: easy ones count less; asymmetric: easy absent labels count less still",
    )
    gamma: float = Field(2.0, ge=0, description="of focal: how much less easy labels count")
    gamma_present: float = Field(0.0, ge=0, description="of asymmetric: the same for labels that an image has")
    gamma_absent: float = Field(4.0, ge=0, description="of asymmetric: the same for labels that it has not")
    clip: float = Field(0.05, ge=0, lt=1, description="of asymmetric: an absent label below this probability costs nothing")
    pos_weight: Literal["none", "balanced"] | dict[str, Annotated[float, Field(gt=0)]] = Field(
        "none",
        description="weight of the images that have a label; balanced: as many times as there are images without it; or by name",
    )
    label_smoothing: float = Field(0.0, ge=0, lt=1)
    threshold: float = Field(0.5, gt=0, lt=1, description="probability from which on an image is said to have a label")

    def learnt(self, facts: Facts) -> tuple[Known, ...]:
        """The labels."""
        return (only(facts, "labels", self.kind),)
