"""What the strategies have in common: rates a part, and layer decay."""

from __future__ import annotations

from typing import Annotated

from pydantic import Field

from trainer.config.base import Kind

Factor = Annotated[float, Field(ge=0, le=1000)]


class Strategy(Kind):
    """What every strategy has.

    A part is a dotted name (all below it) or a pattern with `*`; where several fit, the longest counts.
    """

    rates: dict[str, Factor] = Field(
        default_factory=dict, description="factor on the learning rate of a part, such as {layer4: 0.1, stem: 0}; 0 freezes it"
    )


class Layered(Strategy):
    """A strategy that may let the trunk's early blocks learn more slowly than its late ones."""

    layer_decay: float | None = Field(
        None,
        gt=0,
        le=1,
        description="factor on the learning rate a block, from the head down (0.75: 0.75, 0.56, …)",
    )
