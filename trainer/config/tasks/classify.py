"""The classification task."""

from __future__ import annotations

from typing import ClassVar, Literal

from pydantic import Field

from trainer.config.base import Kind


class Config(Kind):
    """Give each image one class."""

    kind: Literal["classify"] = "classify"
    metrics: ClassVar[tuple[str, ...]] = ("loss", "accuracy", "f1", "top5", "ece", "brier")  # top5 with more than five classes
    loss: Literal["cross_entropy", "mse"] = Field("cross_entropy", description="mse compares the logits with the one-hot class")
    class_weights: Literal["none", "balanced"] = Field("none", description="balanced: each class weighs the same in sum")
    label_smoothing: float = Field(0.0, ge=0, lt=1)
    aux_weight: float = Field(0.3, ge=0, description="weight of auxiliary heads in the loss (GoogLeNet, Inception v3)")
