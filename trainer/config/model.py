"""The section `model` of the run file: which network, and what it begins with."""

from __future__ import annotations

import re
from typing import Any

from pydantic import Field, field_validator, model_validator

from trainer.config.adapt import Adapt
from trainer.config.base import Section

Scalar = bool | int | float | str | None


class Model(Section):
    """The network: `torchvision:NAME`, `timm:NAME`, `transformers:FOLDER`, `diffusers:FOLDER#PART`, `run:NAME` or
    `python:path.py:factory`; of a task that generates also `diffusers:UNet2DModel`, with its arguments as `args`; of a gan
    `gan:resnet`, with its, or `gan:FOLDER`.
    """

    source: str
    weights: str = Field(
        "none",
        description="the name of published weights (IMAGENET1K_V1, DEFAULT), a checkpoint file, or none; left out: none for an "
        "architecture, DEFAULT for a saved model (a folder, a repository of the hub), best for a run",
    )
    args: dict[str, Scalar | list[Scalar]] = Field(default_factory=dict, description="keyword arguments of the factory")
    adapt: Adapt = Adapt()

    @model_validator(mode="before")
    @classmethod
    def _saved(cls, value: Any) -> Any:
        """What is a saved model is meant with its weights, unless `weights` says otherwise."""
        source = value.get("source") if isinstance(value, dict) else None
        if isinstance(source, str) and "weights" not in value:
            scheme, _, rest = source.partition(":")
            named = re.fullmatch(r"[A-Z]\w+Model|AutoencoderKL", rest)  # a class of diffusers
            saved = (
                (scheme == "gan" and rest != "resnet")
                or scheme == "transformers"
                or (scheme == "diffusers" and not named)
                or (scheme == "timm" and "/" in rest)
            )
            return {**value, "weights": "best" if scheme == "run" else "DEFAULT" if saved else "none"}
        return value

    @field_validator("source")
    @classmethod
    def _scheme(cls, value: str) -> str:
        scheme, colon, _ = value.partition(":")
        if not colon:
            raise ValueError(f"write SCHEME:NAME, such as torchvision:{scheme or 'resnet50'}")
        return value
