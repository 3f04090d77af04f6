"""What the tasks have in common whose networks make pictures that can be compared with what they should be."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Callable
from typing import Any, ClassVar, Literal, Self

from pydantic import Field, model_validator

from trainer.config.base import Section
from trainer.config.lpips import WHAT, Lpips, named
from trainer.config.model import Model
from trainer.config.targets import Facts, Known, LooksAt
from trainer.config.task import Task


class Perceptual(Section):
    """The loss between features of two pictures (Johnson, Alahi and Fei-Fei 2016)."""

    features: Model = Field(description="whose features, of any source; it stays as it is")
    layers: list[str] = Field(
        default_factory=list, description="names of its layers; left out: the last block of each resolution"
    )


class Critics(Section):
    """Critics of patches (PatchGAN), which learn to tell what is made from what is real."""

    loss: Literal["hinge", "lsgan", "non_saturating"] = "hinge"
    width: int = Field(64, ge=8, le=512, multiple_of=8, description="channels of its first layer; twice as many at each further")
    layers: int = Field(3, ge=1, le=8, description="layers that halve the size")
    rate: float = Field(1.0, gt=0, description="factor on the learning rate")


class Adversary(Critics):
    """The adversarial loss: a critic that learns to tell what is made from the targets."""

    shown_input: bool = Field(True, description="it sees the input beside the picture (Isola et al. 2017)")


class Samples(Section):
    """What is shown of the validation pairs at each evaluation."""

    count: int = Field(8, ge=0, le=64, description="pairs, evenly spread over the validation samples")


class Painting(Task):
    """A task whose network makes pictures of pictures."""

    samples: Samples = Field(default_factory=Samples)

    def goes_with(self, run: Any) -> None:
        """Nothing that only classifiers have."""
        if run.losses.teacher is not None or any(loss.kind != "l2_sp" for loss in run.losses.add.values()):
            raise ValueError(f"losses: of the further losses only l2_sp goes with task {self.kind}; leave the others out")
        if run.data.cache.kind == "features":
            raise ValueError(
                f"data.cache: features are not kept for task {self.kind}, which needs all of the network; leave it out"
            )
        if run.evaluate.source is not None:
            raise ValueError(
                f"evaluate.source: what task {self.kind} forgets is not measured by samples of classes; leave it out"
            )


class Pictures(Painting):
    """A task with distances of pictures as losses; a subclass has them as `losses`."""

    best: ClassVar[str] = "psnr"
    perceptual: Perceptual | None = Field(None, description="of the loss perceptual")
    adversary: Adversary | None = Field(None, description="of the loss adversarial; left out: its defaults")
    lpips: Lpips | None = Field(None, description=f"{WHAT}; of the loss lpips as well")

    def measured(self, facts: Facts | None = None) -> tuple[str, ...]:
        return (*self.metrics, *named(self.lpips))

    @property
    @abstractmethod
    def chosen(self) -> tuple[str, ...]:
        """The losses by name."""

    @property
    def networks(self) -> dict[str, Model]:
        return {} if self.perceptual is None else {"perceptual.features": self.perceptual.features}

    def moved(self, change: Callable[[Model], Model]) -> Self:
        if self.perceptual is None:
            return self
        features = change(self.perceptual.features)
        return self.model_copy(update={"perceptual": self.perceptual.model_copy(update={"features": features})})

    @property
    def looks_at(self) -> LooksAt:
        return "nothing"

    def learnt(self, facts: Facts) -> tuple[Known, ...]:
        """Nothing: it looks at pictures alone."""
        return ()

    def goes_with(self, run: Any) -> None:
        """Losses that look at pictures, and balances that go with a critic."""
        super().goes_with(run)
        balance = run.losses.balance.kind
        if "adversarial" in self.chosen and balance in ("dwa", "uncertainty", "gradnorm"):
            instead = "losses.weights" if "kl" in self.chosen else "balance: match, or weights"
            raise ValueError(
                f"losses.balance: {balance} goes by how far losses fell, and one against a critic that learns as well says "
                f"nothing of that; write {instead}"
            )

    @model_validator(mode="after")
    def _pictures(self) -> Self:
        if len(set(self.chosen)) < len(self.chosen):
            raise ValueError(f"losses are {', '.join(self.chosen)}; write each once, and its weight as losses.weights")
        if self.adversary is not None and "adversarial" not in self.chosen:
            raise ValueError("adversary says a critic, and losses do not name it; write losses: [l1, adversarial]")
        if self.chosen == ("adversarial",):
            raise ValueError("losses: adversarial alone asks for real pictures, whatever the input; write [l1, adversarial]")
        if "lpips" in self.chosen and self.lpips is None:
            raise ValueError("losses name lpips, and its network is not said; write lpips: vgg, or alex")
        if ("perceptual" in self.chosen) != (self.perceptual is not None):
            raise ValueError(
                "losses name perceptual, and the network is not said; write perceptual: {features: {source: torchvision:vgg16, "
                "weights: DEFAULT}}"
                if self.perceptual is None
                else "perceptual says a network, and losses do not name it; write losses: [l1, perceptual]"
            )
        if self.perceptual is not None and self.perceptual.features.weights == "none":
            raise ValueError("perceptual.features: weights: none, and features that were never learnt say little; name weights")
        return self
