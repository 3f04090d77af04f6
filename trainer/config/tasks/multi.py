"""Several tasks at once: a head for each on one trunk."""

from __future__ import annotations

import re
from typing import Annotated, ClassVar, Literal

from pydantic import Field, field_validator

from trainer.config.errors import UserError, nearest
from trainer.config.targets import LEARNT_BY, WORDS, Facts, Kind, Known, told
from trainer.config.task import Supervised, Task
from trainer.config.tasks import classify, multilabel, regress

Head = Annotated[classify.Config | multilabel.Config | regress.Config, Field(discriminator="kind")]
_KINDS: dict[Kind, type[classify.Config | multilabel.Config | regress.Config]] = {
    "class": classify.Config, "labels": multilabel.Config, "values": regress.Config,
}  # fmt: skip
_NAME = re.compile(r"[A-Za-z][A-Za-z0-9_]{0,49}")


class Config(Task):
    """Say several things of each image."""

    kind: Literal["multi"] = "multi"
    metrics: ClassVar[tuple[str, ...]] = ("loss",)  # and those of each head, with its name before them
    heads: dict[str, Head] | None = Field(
        None, description="a task for each target of the data, by its name; none: one for every target, with the defaults"
    )

    @field_validator("heads")
    @classmethod
    def _named(cls, value: dict[str, Head] | None) -> dict[str, Head] | None:
        if value is not None and not value:
            raise ValueError("name a head, or leave it out for one on every target")
        for name in value or ():
            _check(name)
        return value

    def measured(self, facts: Facts | None = None) -> tuple[str, ...] | None:
        """The loss, and the heads' own metrics, such as `age_mae`."""
        if facts is None and self.heads is None:
            return None
        heads = self.given(facts or Facts(()))
        return (*self.metrics, *(f"{name}_{metric}" for name, head in heads.items() for metric in head.metrics))

    def learnt(self, facts: Facts) -> tuple[Known, ...]:
        """The targets that have a head, in the order of the heads."""
        found = {known.target.name: known for known in facts.targets}
        if "" in found:
            raise UserError(f"task: multi learns several things of an image, and {told(facts)}")
        for name, head in self.given(facts).items():
            if name not in found:
                raise UserError(f"task.heads: data.train says no '{name}'{nearest(name, found)}")
            kind = found[name].target.kind
            if not isinstance(head, _KINDS[kind]):
                raise UserError(
                    f"task.heads.{name}: '{name}' is {WORDS[kind]}, which {head.kind} does not learn; "
                    f"write {name}: {{kind: {LEARNT_BY[kind]}}}"
                )
        return tuple(found[name] for name in self.given(facts))

    def given(self, facts: Facts) -> dict[str, Supervised]:
        """The heads, with those that are left out. Raises UserError for a target whose name cannot be a head's."""
        if self.heads is not None:
            return dict(self.heads)
        try:
            return {_check(known.target.name): _KINDS[known.target.kind]() for known in facts.targets}
        except ValueError as error:
            raise UserError(f"task.heads: {error}") from None


def _check(name: str) -> str:
    if not _NAME.fullmatch(name):
        raise ValueError(
            f"'{name}' cannot be the name of a head: write letters, digits and underscores, beginning with a letter; "
            "the source gives another one with a colon, such as label=eyes:COLUMN"
        )
    return name
