"""The classification task."""

from __future__ import annotations

from typing import Annotated, ClassVar, Literal

from pydantic import Field

from trainer.config.targets import Facts, Known, only
from trainer.config.task import Supervised


class Config(Supervised):
    """Give each image one class."""

    kind: Literal["classify"] = "classify"
    metrics: ClassVar[tuple[str, ...]] = ("loss", "accuracy", "f1", "top5", "ece", "brier")  # top5 with more than five classes
    best: ClassVar[str] = "accuracy"
    loss: Literal["cross_entropy", "focal", "bce", "mse"] = Field(
        "cross_entropy",
        description="focal: easy samples count less; bce: each class against the rest; mse: against the one-hot",
    )
    gamma: float = Field(2.0, ge=0, description="of focal: how much less easy samples count")
    class_weights: Literal["none", "balanced", "effective"] | dict[str, Annotated[float, Field(ge=0)]] = Field(
        "none",
        description="balanced: each class weighs the same in sum; effective: by effective number; or by class name",
    )
    beta: float = Field(0.999, ge=0, lt=1, description="of effective class weights; 0: all alike, near 1: balanced")
    label_smoothing: float = Field(0.0, ge=0, lt=1)

    def learnt(self, facts: Facts) -> tuple[Known, ...]:
        """The class."""
        return (only(facts, "class", self.kind),)
