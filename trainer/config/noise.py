"""How noise is added to images, which of it a generator learns from most, and how images are made of it: sections of `task`."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field

from trainer.config.base import Section


class Noise(Section):
    """The noise of each time step; what is not written is as in the scheduler saved with the weights, else the default."""

    steps: int | None = Field(None, ge=1, le=100_000, description="time steps; none: those of the weights, else 1000")
    betas: Literal["linear", "scaled_linear", "cosine", "sigmoid"] | None = Field(
        None,
        description="linear: Ho et al. 2020; scaled_linear: Rombach et al. 2022; cosine: Nichol and Dhariwal 2021; "
        "none: those of the weights, else linear",
    )
    start: float | None = Field(None, gt=0, lt=1, description="the first beta; none: that of the weights, else 0.0001")
    end: float | None = Field(None, gt=0, lt=1, description="the last beta; none: that of the weights, else 0.02")
    zero_snr: bool | None = Field(
        None, description="nothing is left of an image at the last step (Lin et al. 2024); none: as with the weights, else false"
    )
    shift: float | None = Field(
        None,
        gt=0,
        description="of flow: more noise for larger images (Esser et al. 2024, equation 23); none: as with the weights, else 1",
    )


class Uniform(Section):
    """Every time step as often."""

    kind: Literal["uniform"] = "uniform"


class LogitNormal(Section):
    """Those in the middle more often (Esser et al. 2024, equation 19)."""

    kind: Literal["logit_normal"] = "logit_normal"
    mean: float = Field(0.0, description="above 0: more noise")
    std: float = Field(1.0, gt=0)


Times = Annotated[Uniform | LogitNormal, Field(discriminator="kind")]


Sampler = Literal["auto", "ddim", "ddpm", "dpm++", "unipc", "euler", "heun", "pndm"]


class Samples(Section):
    """How images are made at each evaluation, and by `graft sample` and `graft translate` where they are not told otherwise."""

    count: int = Field(16, ge=0, le=1024, description="images at each evaluation, whole rows of the classes in turn; or pairs")
    prompts: list[str] = Field(default_factory=list, description="of text: what they show; none: the first captions of the data")
    sampler: Sampler = Field("auto", description="auto: ddim (Song et al. 2021), of flow euler")
    steps: int = Field(50, ge=1, le=10_000, description="passes through the network an image")
    guidance: float = Field(
        1.0, ge=0, description="how much further from no class towards the class (Ho and Salimans 2022); 1: just the class"
    )
    seed: int = Field(0, ge=0, lt=2**32, description="of the first image; the next ones have the next seeds")
    batch: int = Field(8, ge=1, description="images that are made at once, whatever the number of ranks")
