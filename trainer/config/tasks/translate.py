"""The task of a network that makes one picture of another."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, ClassVar, Literal

from pydantic import Field

from trainer.config.base import Section
from trainer.config.pairs import Given, Pairs, fit
from trainer.config.pictures import Pictures
from trainer.config.task import Task


class Decoder(Section):
    """The head of a trunk that saw images until now: it makes pictures of the trunk's maps of every resolution."""

    width: int = Field(32, ge=8, le=512, multiple_of=8, description="channels at full resolution; twice as many at each coarser")


class Config(Pictures):
    """Make a picture of a picture: grey to colour, small to large, or what pairs of pictures show."""

    kind: Literal["translate"] = "translate"
    metrics: ClassVar[tuple[str, ...]] = ("loss", "psnr", "ssim", "mae")
    before: ClassVar[Mapping[str, Any]] = {"residual": False}
    translates: ClassVar[bool] = True
    pairs: Pairs = Field(
        default_factory=Given,
        description="given (of a source `pairs:`), side, or made of a photo: grey, small, edges, masked",
    )
    channels: Literal[1, 3] = Field(3, description="of the picture that is made")
    losses: list[Literal["l1", "mse", "perceptual", "lpips", "adversarial"]] = Field(
        ["l1"], min_length=1, description="weighted by losses.weights, balanced by losses.balance"
    )
    decoder: Decoder = Field(default_factory=Decoder, description="of a classifier's trunk")
    residual: Literal["auto"] | bool = Field(
        "auto",
        description="the network's output is added to the input, so that it begins as that (Kim et al. 2016, VDSR); auto: of a "
        "new decoder for pairs grey, small and masked; a network of another run as it was there",
    )

    @property
    def chosen(self) -> tuple[str, ...]:
        return tuple(self.losses)

    @property
    def alike(self) -> bool:
        """Whether a target looks much like its input."""
        return self.pairs.kind in ("grey", "small", "masked")

    def resumed(self, old: Task) -> Task:
        """`residual: auto` is what the run began with."""
        if self.residual != "auto" or not isinstance(old, Config):
            return self
        return self.model_copy(update={"residual": old.residual})

    def goes_with(self, run: Any) -> None:
        """Sources of pairs with pairs, augmentations of the whole pair alone."""
        super().goes_with(run)
        fit(self.pairs, run.data)
