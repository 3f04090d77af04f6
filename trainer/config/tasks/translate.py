"""The task of a network that makes one picture of another."""

from __future__ import annotations

from typing import Any, ClassVar, Literal

from pydantic import Field

from trainer.config.base import Section
from trainer.config.pairs import Given, Pairs, fit
from trainer.config.pictures import Pictures


class Decoder(Section):
    """The head of a trunk that saw images until now: it makes pictures of the trunk's maps of every resolution."""

    width: int = Field(32, ge=8, le=512, multiple_of=8, description="channels at full resolution; twice as many at each coarser")


class Config(Pictures):
    """Make a picture of a picture: grey to colour, small to large, or what pairs of pictures show."""

    kind: Literal["translate"] = "translate"
    metrics: ClassVar[tuple[str, ...]] = ("loss", "psnr", "ssim", "mae")
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

    @property
    def chosen(self) -> tuple[str, ...]:
        return tuple(self.losses)

    def goes_with(self, run: Any) -> None:
        """Sources of pairs with pairs, augmentations of the whole pair alone."""
        super().goes_with(run)
        fit(self.pairs, run.data)
