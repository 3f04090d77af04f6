"""The section `data` of the run file: sources, splits, sampling, what happens to an image."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field, field_validator, model_validator

from trainer.config.base import Section
from trainer.config.buckets import Buckets
from trainer.config.cache import Cache, Choice


class Normalize(Section):
    """Per-channel mean and deviation of pixels in [0, 1]."""

    mean: list[float]
    std: list[Annotated[float, Field(gt=0)]]


class Rand(Section):
    """RandAugment (Cubuk et al. 2020, arXiv 1909.13719): `ops` operations drawn by chance, each at the same strength."""

    ops: int = Field(2, ge=1, le=10)
    magnitude: int = Field(9, ge=0, description="strength, from 0 to bins - 1")
    bins: int = Field(31, ge=2, le=1000, description="steps of the scale of strengths")

    @model_validator(mode="after")
    def _on_the_scale(self) -> Rand:
        if self.magnitude >= self.bins:
            raise ValueError(f"magnitude is {self.magnitude}, beyond the scale of {self.bins} bins; write 0 to {self.bins - 1}")
        return self


class AugMix(Section):
    """AugMix (Hendrycks et al. 2020, arXiv 1912.02781): `width` chains of up to three operations, mixed with the image."""

    severity: int = Field(3, ge=1, le=10)
    width: int = Field(3, ge=1, le=10)
    depth: int = Field(-1, ge=-1, le=10, description="operations in a chain; -1: 1 to 3, by chance")
    alpha: float = Field(1.0, gt=0, description="of the distributions that the shares of the chains are drawn from")

    @field_validator("depth")
    @classmethod
    def _some(cls, value: int) -> int:
        if value == 0:
            raise ValueError("write a number of operations, or -1 for 1 to 3 by chance")
        return value


class Augment(Section):
    """Random changes of training images, drawn from (seed, epoch, sample) alone."""

    crop: Literal["none", "pad", "random", "resized"] = Field(
        "none",
        description="pad: shift within a border; random: a random square of the image resized to resize_to; resized: random area "
        "and aspect",
    )
    padding: int = Field(4, ge=1, description="border in pixels for crop: pad")
    scale: tuple[float, float] = Field((0.08, 1.0), strict=False, description="area for crop: resized")
    flip: float = Field(0.0, ge=0, le=1, description="probability of a horizontal flip")
    rotate: float = Field(0.0, ge=0, le=180, description="degrees to either side")
    color: float = Field(0.0, ge=0, le=1, description="strength of brightness, contrast and saturation jitter")
    grey: float = Field(0.0, ge=0, le=1, description="probability of losing the colours")
    blur: float = Field(0.0, ge=0, le=1, description="probability of a Gaussian blur, deviation 0.1 to 2 pixels")
    solarize: float = Field(0.0, ge=0, le=1, description="probability of inverting what is brighter than the middle")
    auto: Literal["none", "trivial", "rand", "autoaugment", "augmix", "three"] = Field(
        "none", description="a policy: TrivialAugment, RandAugment, AutoAugment, AugMix, or the 3-Augment of DeiT III"
    )
    rand: Rand = Field(default_factory=Rand, description="for auto: rand")
    augmix: AugMix = Field(default_factory=AugMix, description="for auto: augmix")
    policy: Literal["imagenet", "cifar10", "svhn"] = Field("imagenet", description="for auto: autoaugment: where it was learnt")
    erase: float = Field(0.0, ge=0, le=1, description="probability of erasing a random rectangle")
    erase_fill: Literal["zero", "mean", "noise"] = Field(
        "zero", description="zero: black; mean: the normalisation's mean; noise: every value of every pixel by chance"
    )


class Mix(Section):
    """A training image mixed with another one, and their classes in the same shares.

    mixup (Zhang et al. 2018, arXiv 1710.09412) blends the whole images, cutmix (Yun et al. 2019, arXiv 1905.04899) lays a
    rectangle of the other image into the one. The other image and the share are functions of (seed, epoch, sample).
    """

    mixup: float = Field(0.0, ge=0, description="alpha of Beta(alpha, alpha), which the share is drawn from; 0: no mixup")
    cutmix: float = Field(0.0, ge=0, description="the same for cutmix")
    probability: float = Field(1.0, gt=0, le=1, description="share of the images that are mixed at all")
    switch: float = Field(0.5, ge=0, le=1, description="with both: the share of cutmix")

    @model_validator(mode="after")
    def _something(self) -> Mix:
        if not self.mixup and not self.cutmix:
            raise ValueError("data.mix mixes nothing; write mixup: 0.2 or cutmix: 1.0 (or both), or leave data.mix out")
        return self


class Uniform(Section):
    """Each sample once an epoch."""

    kind: Literal["uniform"] = "uniform"


class Balanced(Section):
    """Classes as often as `count ** power`: 0 each class as often, 0.5 smoothed (Mahajan et al. 2018), 1 as they come."""

    kind: Literal["balanced"] = "balanced"
    power: float = Field(0.0, ge=0, le=1)


class Weighted(Section):
    """Samples in proportion to a weight: that of their class, of a column of the source (`csv:…?weight=COLUMN`), or both."""

    kind: Literal["weighted"] = "weighted"
    classes: dict[str, Annotated[float, Field(ge=0)]] = Field(
        default_factory=dict, description="weight of each sample of a class; a class that is not named has 1"
    )


Sampling = Annotated[Uniform | Balanced | Weighted, Field(discriminator="kind")]


class Data(Section):
    """Where the samples are and how an image becomes a tensor.

    Sources: `folder:PATH` (one folder a class), `csv:FILE?image=COLUMN&label=COLUMN`, `digits:0-4/train`,
    `hf:FOLDER_OR_NAME/train?image=COLUMN&label=COLUMN`, `webdataset:shards/{000..009}.tar?image=jpg;png&label=cls`,
    `torchvision:CIFAR10?root=PATH&split=train`, `pairs:PATH?input=FOLDER&target=FOLDER` for task translate.
    """

    train: str
    val: str | None = Field(
        None,
        description="a source, `split:0.2` to hold that share of the training images back, or `fold:2/5`: part two of five",
    )
    classes: list[str] | None = Field(None, description="these classes only, in this order")
    per_class: int | None = Field(None, ge=1, description="at most so many training images a class, chosen by the seed")
    fraction: float | None = Field(
        None, gt=0, le=1, description="this share of each class's training images, chosen by the seed; a larger one contains it"
    )
    split_seed: int | None = Field(
        None, ge=0, lt=2**32, description="seed of what is held back, folded or chosen; none: train.seed"
    )
    min_per_class: int = Field(2, ge=1, description="refuse a class with fewer training images")
    sampling: Sampling = Field(default_factory=Uniform, description="how often the samples come in an epoch")
    workers: int = Field(2, ge=0, le=256, description="loader processes a rank; 0 loads in the training process")
    resize: Literal["squash", "crop"] = Field(
        "crop", description="crop: scale the short side, cut the middle; squash: ignore the aspect"
    )
    resize_to: int | None = Field(None, ge=8, description="short side before the middle is cut; none: image_size")
    buckets: Buckets | None = Field(
        None, description="of task diffusion: images keep their aspect; none: all are squares of image_size"
    )
    interpolation: Literal["auto", "nearest", "bilinear", "bicubic"] = Field(
        "auto", description="auto: as for the weights, bilinear where that is not known"
    )
    decoder: Literal["pillow", "torchvision"] = Field(
        "pillow", description="what decodes JPEGs; torchvision is faster, and its pixels may differ by rounding"
    )
    normalize: Literal["auto", "imagenet", "half", "none"] | Normalize = Field(
        "auto",
        description="auto: what the weights were trained with, else imagenet for 3 channels and half (to [-1, 1]) otherwise",
    )
    augment: Augment = Augment()
    mix: Mix | None = Field(None, description="mixup and cutmix")
    cache: Choice = Field(default_factory=Cache, description="what a frozen first part makes is computed once")
    max_pixels: int = Field(64_000_000, ge=1, description="an image with more is refused before it is decoded")
    max_bad: int = Field(
        0, ge=0, description="unreadable images a rank skips and counts in an attempt before the run stops; 0 stops at the first"
    )

    @model_validator(mode="after")
    def _one_choice(self) -> Data:
        if self.per_class is not None and self.fraction is not None:
            raise ValueError("data.per_class and data.fraction both choose training images; write one of them")
        if self.cache.kind == "decoded":
            if self.augment.crop == "resized" and self.cache.side is None:
                raise ValueError(
                    "data.cache: decoded, and augment.crop: resized draws from the image as it is in its file; write data.cache: "
                    "{kind: decoded, side: 256}, and crops are drawn from images whose short side is 256, or cache: none"
                )
            if self.augment.crop != "resized" and self.cache.side is not None:
                raise ValueError(
                    f"data.cache.side is for augment.crop: resized; with crop: {self.augment.crop} images are kept as resize_to "
                    "makes them; leave side out"
                )
        if self.augment.crop == "random" and self.resize == "squash":
            raise ValueError("data.augment.crop: random keeps the aspect, and resize: squash does not; write resize: crop")
        if self.cache.kind == "features" and self.mix is not None:
            raise ValueError(
                "data.cache: features, and data.mix makes every image another mixture, whose features are no mixture of "
                "features; leave one of them out"
            )
        return self
