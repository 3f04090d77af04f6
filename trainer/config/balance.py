"""What the config classes of balances have in common."""

from __future__ import annotations

from typing import ClassVar

from trainer.config.base import Kind


class Balance(Kind):
    """How the weights of losses move.

    `own_gradients`: it goes back through the network for each loss by itself, beside the gradient that the optimizer takes.
    """

    own_gradients: ClassVar[bool] = False
