"""The task of a network that makes one picture of another."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, ClassVar, Literal

from pydantic import Field, model_validator

from trainer.config.base import Section
from trainer.config.model import Model
from trainer.config.pairs import Given, Pairs
from trainer.config.targets import Facts, Known, LooksAt
from trainer.config.task import Task

_ONE_PICTURE = ("color", "grey", "blur", "solarize", "auto", "erase")  # augmentations that are no change of place


class Perceptual(Section):
    """The loss between features of two pictures (Johnson, Alahi and Fei-Fei 2016)."""

    features: Model = Field(description="whose features, of any source; it stays as it is")
    layers: list[str] = Field(
        default_factory=list, description="names of its layers; left out: the last block of each resolution"
    )


class Adversary(Section):
    """The adversarial loss: a critic of patches (PatchGAN) that learns to tell what is made from the targets."""

    loss: Literal["hinge", "lsgan", "non_saturating"] = "hinge"
    width: int = Field(64, ge=8, le=512, multiple_of=8, description="channels of its first layer; twice as many at each further")
    layers: int = Field(3, ge=1, le=8, description="layers that halve the size")
    rate: float = Field(1.0, gt=0, description="factor on the learning rate")
    shown_input: bool = Field(True, description="it sees the input beside the picture (Isola et al. 2017)")


class Decoder(Section):
    """The head of a trunk that saw images until now: it makes pictures of the trunk's maps of every resolution."""

    width: int = Field(32, ge=8, le=512, multiple_of=8, description="channels at full resolution; twice as many at each coarser")


class Samples(Section):
    """What is shown of the validation pairs at each evaluation."""

    count: int = Field(8, ge=0, le=64, description="pairs, evenly spread over the validation samples")


class Config(Task):
    """Make a picture of a picture: grey to colour, small to large, or what pairs of pictures show."""

    kind: Literal["translate"] = "translate"
    metrics: ClassVar[tuple[str, ...]] = ("loss", "psnr", "ssim", "mae")
    best: ClassVar[str] = "psnr"
    translates: ClassVar[bool] = True
    pairs: Pairs = Field(
        default_factory=Given,
        description="given (of a source `pairs:`), side, or made of a photo: grey, small, edges, masked",
    )
    channels: Literal[1, 3] = Field(3, description="of the picture that is made")
    losses: list[Literal["l1", "mse", "perceptual", "adversarial"]] = Field(
        default_factory=lambda: ["l1"], min_length=1, description="weighted by losses.weights, balanced by losses.balance"
    )
    perceptual: Perceptual | None = Field(None, description="of the loss perceptual")
    adversary: Adversary | None = Field(None, description="of the loss adversarial; left out: its defaults")
    decoder: Decoder = Field(default_factory=Decoder, description="of a classifier's trunk")
    samples: Samples = Field(default_factory=Samples)

    @property
    def networks(self) -> dict[str, Model]:
        return {} if self.perceptual is None else {"perceptual.features": self.perceptual.features}

    def moved(self, change: Callable[[Model], Model]) -> Config:
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
        """Sources of pairs with pairs, augmentations of the whole pair alone, losses that look at pictures."""
        for key in ("train", "val"):
            source = getattr(run.data, key)
            if source is None or source.startswith(("split:", "fold:")):
                continue
            if source.startswith("pairs:") != (self.pairs.kind == "given"):
                raise ValueError(
                    f"data.{key} is '{source}', and task.pairs: given takes pairs:FOLDER or pairs:FILE.csv; or say how a pair "
                    "comes of one picture: task.pairs: side, grey, small, edges or masked"
                    if self.pairs.kind == "given"
                    else f"data.{key}: {source} says pairs itself; leave task.pairs out"
                )
        if not self.pairs.derived:
            plain = type(run.data.augment)()
            for name in _ONE_PICTURE:
                if getattr(run.data.augment, name) != getattr(plain, name):
                    raise ValueError(
                        f"data.augment.{name} would change the two pictures of a pair, which have to show the same; leave it "
                        "out (crop, flip and rotate are the same for both)"
                    )
        if run.losses.teacher is not None or any(loss.kind != "l2_sp" for loss in run.losses.add.values()):
            raise ValueError("losses: of the further losses only l2_sp goes with task translate; leave the others out")
        if run.data.cache.kind == "features":
            raise ValueError("data.cache: features are not kept for task translate, which needs maps from all over the trunk")
        balance = run.losses.balance.kind
        if "adversarial" in self.losses and balance in ("dwa", "uncertainty", "gradnorm"):
            raise ValueError(
                f"losses.balance: {balance} goes by how far losses fell, and one against a critic that learns as well says "
                "nothing of that; write balance: match, or weights"
            )
        if run.evaluate.source is not None:
            raise ValueError("evaluate.source: what task translate forgets is not measured by samples of classes; leave it out")
        if run.data.classes is not None and self.pairs.kind == "given":
            raise ValueError("data.classes chooses among classes, and pairs have none; leave it out")

    @model_validator(mode="after")
    def _fits(self) -> Config:
        if len(set(self.losses)) < len(self.losses):
            raise ValueError(f"losses are {', '.join(self.losses)}; write each once, and its weight as losses.weights")
        if self.adversary is not None and "adversarial" not in self.losses:
            raise ValueError("adversary says a critic, and losses do not name it; write losses: [l1, adversarial]")
        if self.losses == ["adversarial"]:
            raise ValueError("losses: adversarial alone asks for real pictures, whatever the input; write [l1, adversarial]")
        if ("perceptual" in self.losses) != (self.perceptual is not None):
            raise ValueError(
                "losses name perceptual, and the network is not said; write perceptual: {features: {source: torchvision:vgg16, "
                "weights: DEFAULT}}"
                if self.perceptual is None
                else "perceptual says a network, and losses do not name it; write losses: [l1, perceptual]"
            )
        if self.perceptual is not None and self.perceptual.features.weights == "none":
            raise ValueError("perceptual.features: weights: none, and features that were never learnt say little; name weights")
        return self
