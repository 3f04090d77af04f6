"""The task of a generator that takes noise out of images."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, ClassVar, Literal

from pydantic import Field, field_validator, model_validator

from trainer.config.fidelity import Fidelity
from trainer.config.lpips import WHAT, Lpips, named
from trainer.config.model import Model
from trainer.config.noise import Noise, Samples, Times, Uniform
from trainer.config.pairs import Pairs, fit
from trainer.config.prior import Prior
from trainer.config.targets import Facts, Known, LooksAt, only
from trainer.config.task import Task


class Config(Task):
    """Learn to take noise out of images, and make new ones of noise alone, or of noise and a source picture."""

    kind: Literal["diffusion"] = "diffusion"
    metrics: ClassVar[tuple[str, ...]] = ("loss",)
    generates: ClassVar[bool] = True
    condition: Literal["class", "text", "none"] = Field("class", description="what the network is told of an image")
    pairs: Pairs | None = Field(
        None,
        description="make pictures of pictures: the network is given a source picture by further input channels (Saharia et al. "
        "2022, Palette); given (of a source `pairs:`), side, or made of a photo: grey, small, edges, masked; none: of noise",
    )
    template: str = Field("{}", description="of text: what a caption (or the name of a class) is put into, at {}")
    drop: float = Field(
        0.1, ge=0, lt=1, description="share of the images whose class is not told, for guidance (Ho and Salimans 2022)"
    )
    distilled_guidance: float | None = Field(
        None, ge=0, description="of a network that is told how strongly it is guided (some of Flux's): what it is told; none: 3.5"
    )
    objective: Literal["auto", "epsilon", "v", "sample", "flow"] = Field(
        "auto",
        description="what the network says: epsilon: the noise (Ho et al. 2020); v: Salimans and Ho 2022; sample: the image; "
        "flow: the way from it to the noise (Liu et al. 2023); auto: what its weights say, else epsilon",
    )
    retarget: bool = Field(False, description="teach weights another objective than the one they were trained with")
    weighting: Literal["uniform", "snr", "min_snr"] = Field(
        "uniform",
        description="of the times in the loss; uniform: alike, on what the network says; snr: by the signal in the image, as a "
        "loss on the image; min_snr: the same, at most `gamma` (Hang et al. 2023)",
    )
    gamma: float = Field(5.0, gt=0, description="of min_snr")
    times: Times = Field(default_factory=Uniform, description="how often each time step is learnt from")
    noise: Noise = Field(default_factory=Noise)
    vae: str | None = Field(
        None,
        description="learn on the latents of an autoencoder: pipeline (the one beside the generator), or diffusers:FOLDER; "
        "none: on pixels",
    )
    draws: int = Field(4, ge=1, le=1000, description="time steps at which each validation image is measured")
    samples: Samples = Field(default_factory=Samples)
    fidelity: Fidelity | None = Field(None, description="how like the data the images are; none: not measured")
    prior: Prior | None = Field(None, description="images of what the weights knew before, learnt beside those of the data")

    lpips: Lpips | None = Field(None, description=f"of pairs: {WHAT}")

    def measured(self, facts: Facts | None = None) -> tuple[str, ...]:
        """The loss, and how like the data the images are, or how near their targets."""
        return (*self.metrics, *(self.fidelity.names if self.fidelity is not None else ()), *self.figures)

    @property
    def figures(self) -> tuple[str, ...]:
        """What is measured of pictures that are made of pictures."""
        return ("psnr", "ssim", "mae", *named(self.lpips)) if self.pairs is not None and self.samples.count else ()

    def goes_with(self, run: Any) -> None:
        """Sources of pairs with pairs, augmentations of the whole pair alone."""
        if self.pairs is None:
            return
        fit(self.pairs, run.data)
        if run.data.cache.kind == "features":
            raise ValueError("data.cache: the latents of pairs are not kept; leave it out")

    @property
    def networks(self) -> dict[str, Model]:
        found = {} if self.vae in (None, "pipeline") else {"vae": Model(source=self.vae)}
        features = self.fidelity.features if self.fidelity is not None else None
        return found if features is None else {**found, "fidelity.features": features}

    def moved(self, change: Callable[[Model], Model]) -> Config:
        found: dict[str, Any] = {}
        if "vae" in self.networks:
            found["vae"] = change(self.networks["vae"]).source
        if self.fidelity is not None and self.fidelity.features is not None:
            found["fidelity"] = self.fidelity.model_copy(update={"features": change(self.fidelity.features)})
        return self.model_copy(update=found)

    @property
    def looks_at(self) -> LooksAt:
        looks: dict[str, LooksAt] = {"none": "nothing", "text": "captions"}
        return looks.get(self.condition, "targets")

    def learnt(self, facts: Facts) -> tuple[Known, ...]:
        """The class, or the text, where the network is told of it."""
        return () if self.condition == "none" else (only(facts, "class", self.kind),)

    @field_validator("vae")
    @classmethod
    def _source(cls, value: str | None) -> str | None:
        if value not in (None, "pipeline") and not value.startswith("diffusers:"):
            raise ValueError("write pipeline, or diffusers:FOLDER")
        return value

    @model_validator(mode="after")
    def _fits(self) -> Config:
        flow = self.objective == "flow"
        if flow and any(value is not None for value in (self.noise.betas, self.noise.start, self.noise.end, self.noise.zero_snr)):
            raise ValueError("noise.betas, start, end and zero_snr are not of flow, whose noise grows evenly; leave them out")
        if self.noise.shift is not None and not flow and self.objective != "auto":
            raise ValueError(f"noise.shift is of objective: flow, and this is {self.objective}; leave it out")
        if self.noise.zero_snr and self.objective == "epsilon":
            raise ValueError(
                "noise.zero_snr leaves nothing of an image at the last step, so that its noise says nothing; write objective: v"
            )
        if self.template != "{}" and (self.condition != "text" or "{}" not in self.template):
            raise ValueError("template goes with condition: text, and has a {} where the caption comes in")
        if self.pairs is not None and self.condition != "none":
            raise ValueError(
                f"pairs: what the network is told of a picture is the source beside it, and condition is {self.condition}; write "
                "condition: none (a network that is told texts is told the empty one)"
            )
        if self.pairs is not None and self.prior is not None:
            raise ValueError("prior is of images made of noise alone, and pairs are pictures of pictures; leave it out")
        if self.pairs is not None and self.fidelity is not None:
            raise ValueError("fidelity is of images made of noise alone, and pairs are compared with their targets; leave it out")
        if self.pairs is None and self.lpips is not None:
            raise ValueError("lpips compares pictures with their targets, and there are no pairs; leave it out")
        if self.pairs is not None and self.lpips is not None and not self.samples.count:
            raise ValueError("lpips is of the pictures that samples.count says, which is 0; write samples.count: 16")
        if self.samples.prompts and self.condition != "text":
            raise ValueError(f"samples.prompts are texts, and condition is {self.condition}; leave them out")
        if self.prior is not None:
            self._told(self.prior)
        if self.samples.guidance != 1 and (self.condition == "none" or not self.drop):
            why = "condition is none" if self.condition == "none" else "drop is 0, so that no class is ever left untold"
            raise ValueError(f"samples.guidance is {self.samples.guidance:g}, and {why}; leave it at 1")
        return self

    def _told(self, prior: Prior) -> None:
        """Raises ValueError where the prior's images would be told of otherwise than those of the data."""
        for key, condition in (("prompts", "text"), ("classes", "class")):
            if getattr(prior, key) and self.condition != condition:
                raise ValueError(f"prior.{key} goes with condition: {condition}, and this is {self.condition}; leave it out")
        if self.condition == "class" and not prior.classes:
            raise ValueError("prior.classes is missing: name the classes that shall not be forgotten")
        if self.condition == "text" and prior.data is None and not prior.prompts:
            raise ValueError('prior.prompts is missing: say what shall not be forgotten, such as ["a photo of a dog"]')
