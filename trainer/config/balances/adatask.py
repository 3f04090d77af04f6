"""A learning rate for each loss, which adapts."""

from __future__ import annotations

from typing import ClassVar, Literal

from trainer.config.balance import Balance


class Config(Balance):
    """Adam's moments for each loss apart, so that each has a step size of its own: AdaTask (Yang et al. 2023)."""

    kind: Literal["adatask"] = "adatask"
    own_gradients: ClassVar[bool] = True
