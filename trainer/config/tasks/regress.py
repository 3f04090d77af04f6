"""The regression task."""

from __future__ import annotations

from typing import ClassVar, Literal

from pydantic import Field

from trainer.config.targets import Facts, Known, some
from trainer.config.task import Supervised


class Config(Supervised):
    """Give each image one number or several."""

    kind: Literal["regress"] = "regress"
    metrics: ClassVar[tuple[str, ...]] = ("loss", "mae", "rmse", "r2", "pearson")
    best: ClassVar[str] = "mae"
    loss: Literal["mse", "l1", "huber", "smooth_l1"] = Field(
        "mse", description="mse: squared error; l1: absolute; huber, smooth_l1: squared for small errors, absolute for large ones"
    )
    delta: float = Field(1.0, gt=0, description="of huber and smooth_l1: where small errors end, in the units of the loss")
    standardize: bool = Field(
        True,
        description="the network learns (value - mean) / deviation of the training data; what is shown is in the data's units",
    )

    def learnt(self, facts: Facts) -> tuple[Known, ...]:
        """All numbers."""
        return some(facts, "values", self.kind)
