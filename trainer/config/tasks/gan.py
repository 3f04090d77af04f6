"""The task of a generator that learns against a critic (Goodfellow et al. 2014)."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, ClassVar, Literal

from pydantic import Field, ValidationError, field_validator

from trainer.config.base import Section
from trainer.config.fidelity import Fidelity
from trainer.config.model import Model
from trainer.config.targets import Facts, Known, LooksAt, only
from trainer.config.task import Task

Change = Literal["color", "translation", "cutout"]


class Critic(Section):
    """How the network learns that tells what is made from what is real."""

    rate: float = Field(1.0, gt=0, description="factor on the learning rate")
    frozen: int = Field(0, ge=0, description="its first blocks that stay as they are: FreezeD (Mo, Cho and Shin 2020)")


class Penalty(Section):
    """The squared gradient of what the critic says of real images: R1 (Mescheder, Geiger and Nowozin 2018, equation 9)."""

    weight: float | None = Field(
        None,
        ge=0,
        description="gamma of the paper, of images from -1 to 1; none: 0.0002 times the pixels of an image over the global batch "
        "(Karras et al. 2020, appendix C); 0: no penalty",
    )
    every: int = Field(16, ge=1, description="steps between two of it, each of which counts so often (Karras et al. 2020)")


class Adaptive(Section):
    """How often images are changed follows the critic: more where it knows the real ones by heart (Karras et al. 2020)."""

    target: float = Field(0.6, ge=-1, le=1, description="mean sign of what the critic says of real images that is aimed at")
    images: int = Field(500_000, ge=1, description="real images in which the share goes from 0 to 1")
    every: int = Field(4, ge=1, description="steps between two looks at the signs")


def _all() -> list[Change]:
    return ["color", "translation", "cutout"]


class Augment(Section):
    """Changes of what the critic sees, real or made, that gradients go through (Zhao et al. 2020)."""

    changes: list[Change] = Field(default_factory=_all, min_length=1)
    share: float | None = Field(
        None, ge=0, le=1, description="of the images that each of them changes; none: 1, and where it is adaptive 0 at first"
    )
    adaptive: Adaptive | None = None

    @property
    def begins(self) -> float:
        """The share at first."""
        return self.share if self.share is not None else 0.0 if self.adaptive is not None else 1.0

    @field_validator("changes")
    @classmethod
    def _once(cls, value: list[Change]) -> list[Change]:
        if len(set(value)) < len(value):
            raise ValueError("name each of color, translation and cutout at most once")
        return value


class Samples(Section):
    """How images are made at each evaluation, and by `graft sample` where it is not told otherwise."""

    count: int = Field(16, ge=0, le=1024, description="images at each evaluation, as many of each class")
    truncation: float | None = Field(
        None, gt=0, description="latents no further from 0 than this: likelier images, and less of a choice (Brock et al. 2019)"
    )
    seed: int = Field(0, ge=0, lt=2**32, description="of the first image; the next ones have the next seeds")
    batch: int = Field(8, ge=1, description="images that are made at once, whatever the number of ranks")


class Config(Task):
    """Learn to make images of noise that a second network cannot tell from those of the data."""

    kind: Literal["gan"] = "gan"
    generates: ClassVar[bool] = True
    duels: ClassVar[bool] = True
    condition: Literal["class", "none"] = Field("class", description="what both networks are told of an image")
    loss: Literal["non_saturating", "hinge", "lsgan"] = Field(
        "non_saturating", description="Goodfellow et al. 2014; hinge: Lim and Ye 2017; lsgan: Mao et al. 2017"
    )
    critic: Critic = Critic()
    r1: Penalty = Penalty()
    augment: Augment | None = Field(None, description="none: the critic sees images as they are")
    samples: Samples = Samples()
    fidelity: Fidelity = Field(description="how like the data the images are, which no loss of the two says")

    def measured(self, facts: Facts | None = None) -> tuple[str, ...]:
        """How like the data the images are."""
        return self.fidelity.names

    @classmethod
    def chosen_by(cls, task: Mapping[str, Any]) -> str:
        """The first of what is measured."""
        try:
            return Fidelity.model_validate(task.get("fidelity")).names[0]
        except ValidationError:  # told where the section itself is read
            return "fid"

    @property
    def networks(self) -> dict[str, Model]:
        features = self.fidelity.features
        return {} if features is None else {"fidelity.features": features}

    def moved(self, change: Callable[[Model], Model]) -> Config:
        if self.fidelity.features is None:
            return self
        fidelity = self.fidelity.model_copy(update={"features": change(self.fidelity.features)})
        return self.model_copy(update={"fidelity": fidelity})

    @property
    def looks_at(self) -> LooksAt:
        return "nothing" if self.condition == "none" else "targets"

    def learnt(self, facts: Facts) -> tuple[Known, ...]:
        """The class, where the networks are told of it."""
        return () if self.condition == "none" else (only(facts, "class", self.kind),)

    def goes_with(self, run: Any) -> None:
        """Gradients of gradients, which fp16 has no room for; nothing that is kept of another network."""
        if run.train.precision == "fp16" and self.r1.weight != 0:
            raise ValueError("train.precision: fp16 has no room for the squared gradients of task.r1; write bf16")
        if run.data.cache.kind == "features":
            raise ValueError("data.cache: a generator does not look at the images, so that nothing of them is kept; leave it out")
