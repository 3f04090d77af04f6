"""What the config classes of tasks have in common."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Callable, Mapping
from typing import Any, ClassVar

from pydantic import Field

from trainer.config.base import Kind
from trainer.config.model import Model
from trainer.config.targets import Facts, Known, LooksAt


class Task(Kind):
    """What a run learns of an image: a subclass names the `metrics` that its evaluation gives, and the one that is the `best`'s
    when the run file names none.

    `generates`: its network makes images; `translates`: it makes them of other images; `reconstructs`: of themselves; `duels`: of
    latents, against a critic.
    """

    metrics: ClassVar[tuple[str, ...]] = ()
    best: ClassVar[str] = "loss"
    before: ClassVar[Mapping[str, Any]] = {}  # what settings were that resolved run files of earlier versions lack
    generates: ClassVar[bool] = False
    translates: ClassVar[bool] = False
    reconstructs: ClassVar[bool] = False
    duels: ClassVar[bool] = False

    @classmethod
    def chosen_by(cls, task: Mapping[str, Any]) -> str:
        """The metric that chooses the best, where the run file names none, of a section `task` that nobody checked yet."""
        return cls.best

    @property
    def networks(self) -> dict[str, Model]:
        """The networks that the task reads beside the one that learns, by their keys."""
        return {}

    @property
    def weights(self) -> Mapping[str, float]:
        """What its losses weigh where `losses.weights` says nothing; 1 where this says nothing either."""
        return {}

    def moved(self, change: Callable[[Model], Model]) -> Task:
        """The task with those changed."""
        return self

    def resumed(self, old: Task) -> Task:
        """The task as it goes on from its own run with the task `old`: what is chosen by itself stays as it was."""
        return self

    @property
    def looks_at(self) -> LooksAt:
        """What of the data is looked at beside the images; where it is nothing, nothing need be said of them."""
        return "targets"

    def goes_with(self, run: Any) -> None:
        """Raises ValueError where another section of the run file does not go with the task."""

    def measurable(self, held: Facts) -> None:
        """Raises UserError where the validation data has too few samples of a kind for what is measured."""

    def measured(self, facts: Facts | None = None) -> tuple[str, ...] | None:
        """The metrics that may be asked for; none where only the data can tell and is not given."""
        return self.metrics

    @abstractmethod
    def learnt(self, facts: Facts) -> tuple[Known, ...]:
        """The targets that the task learns, of those that the training data has. Raises UserError for data of another kind."""


class Supervised(Task):
    """A task that compares what a network says of an image with what is known of it."""

    aux_weight: float = Field(0.3, ge=0, description="weight of auxiliary heads in the loss (GoogLeNet, Inception v3)")
