"""The section `losses` of the run file: what is minimised beside the task's own losses, and how all of them are balanced."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, Annotated

from pydantic import Field, model_validator

from trainer.config.balance import Balance
from trainer.config.balances import fixed
from trainer.config.base import Kind, Section, one_of
from trainer.config.model import Model
from trainer.config.paired import Paired

if TYPE_CHECKING:
    AnyLoss = Kind
    AnyBalance = Balance
else:
    AnyLoss = one_of("trainer.config.losses")
    AnyBalance = one_of("trainer.config.balances")

_NAME = re.compile(r"[A-Za-z][A-Za-z0-9_-]{0,39}")


class Losses(Section):
    """What is minimised: the task's losses and further ones, each with a weight."""

    teacher: Model | None = Field(None, description="the network that is learnt from, of any source; it stays as it is")
    add: dict[str, AnyLoss] = Field(default_factory=dict, description="further losses, by names of your own")
    weights: dict[str, Annotated[float, Field(ge=0)]] = Field(
        default_factory=dict,
        description="factor of a loss: the task's is called task (several heads each by their names), further ones as in add",
    )
    balance: AnyBalance = Field(default_factory=fixed.Config, description="how the weights move while the run learns")

    @property
    def plain(self) -> bool:
        """Whether nothing but the task's own losses is minimised, as they are."""
        return not self.add and not self.weights and self.balance.kind == "fixed"

    def of(self, reference: str) -> list[str]:
        """The further losses that look at `teacher` or at `start`."""
        return [name for name, loss in self.add.items() if _looks_at(loss) == reference]

    @property
    def at_images(self) -> list[str]:
        """The further losses that need more of a sample than what the last layers give: its image."""
        return [name for name, loss in self.add.items() if loss.kind != "l2_sp"]

    @model_validator(mode="after")
    def _fits(self) -> Losses:
        for name in self.add:
            if not _NAME.fullmatch(name):
                raise ValueError(f"add: '{name}' is no name; write up to 40 letters, digits, dashes and underscores")
            if name == "task":
                raise ValueError("add: 'task' is the task's own loss; give the further one another name")
        wants = self.of("teacher")
        if wants and self.teacher is None:
            raise ValueError(f"add: '{wants[0]}' looks at a teacher; write teacher: {{source: …}}, or of: start")
        if self.teacher is not None and not wants:
            raise ValueError("teacher: nothing looks at it; write add: {soft: {kind: logits}}, or leave it out")
        if self.teacher is not None:
            if self.teacher.weights == "none":
                raise ValueError("teacher: weights: none, and what was never trained teaches nothing; name its weights")
            if self.teacher.adapt.head == "new" or self.teacher.adapt.like:
                raise ValueError("teacher: it stays as it is; leave head: new and like out (rename says what it calls a class)")
        return self


def _looks_at(loss: Kind) -> str | None:
    if isinstance(loss, Paired):
        return loss.of
    return {"logits": "teacher", "l2_sp": "start"}.get(loss.kind)
