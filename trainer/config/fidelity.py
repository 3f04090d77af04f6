"""How like the data the images of a generator are: which distances are measured, between which features."""

from __future__ import annotations

import re
from typing import Literal, Self

from pydantic import Field, model_validator

from trainer.config.base import Section
from trainer.config.model import Model

Measured = Literal["fid", "kid", "precision_recall", "is"]
LEAST: dict[Measured, int] = {"fid": 2, "kid": 2, "precision_recall": 4, "is": 10}  # images of either side that each needs


def _usual() -> list[Measured]:
    return ["fid", "kid"]


class Distances(Section):
    """Distances between features of images that are made and of images of the data, as the torch-fidelity library works them out.

    With its own networks (Inception v3 of 2015; VGG16 for precision and recall) they bear their names; with another network `fid`
    is called `fd_NAME`, `kid` `kd_NAME`, and the others likewise: such numbers compare with no published ones.
    """

    measure: list[Measured] = Field(
        default_factory=_usual,
        description="fid: Heusel et al. 2017; kid: Bińkowski et al. 2018; precision_recall: Kynkäänniemi et al. 2019; "
        "is: Salimans et al. 2016",
    )
    features: Model | None = Field(None, description="another network, with its weights; none: torch-fidelity's own")

    @property
    def suffix(self) -> str:
        """What the names of metrics end with: nothing for the standard features."""
        if self.features is None:
            return ""
        scheme, _, rest = self.features.source.partition(":")
        last = re.split(r"[/:#]", rest.rstrip("/"))[-1] if scheme != "python" else rest.rpartition(":")[2]
        return "_" + (re.sub(r"[^A-Za-z0-9]+", "", last.partition(".")[0]) or scheme)

    @property
    def names(self) -> tuple[str, ...]:
        """The metrics, as an evaluation names them."""
        other = {"fid": ("fd",), "kid": ("kd",)} if self.features is not None else {}
        plain = {"precision_recall": ("precision", "recall"), **other}
        return tuple(f"{name}{self.suffix}" for asked in self.measure for name in plain.get(asked, (asked,)))

    @model_validator(mode="after")
    def _known(self) -> Self:
        if not self.measure or len(set(self.measure)) < len(self.measure):
            raise ValueError("measure: name each of fid, kid, precision_recall and is at most once, and one at least")
        if self.features is not None:
            if "is" in self.measure:
                raise ValueError("measure: 'is' asks Inception v3 for its classes; leave it out with other features")
            if self.features.weights == "none":
                raise ValueError("features: weights: none, and what was never trained tells nothing apart; name its weights")
        return self


class Fidelity(Distances):
    """How like the data the images of a generator are."""

    samples: int = Field(ge=2, description="images that are made for it at each evaluation, over all ranks")
    against: Literal["val", "train"] = Field("val", description="the images of the data, as an evaluation reads them")

    @model_validator(mode="after")
    def _fits(self) -> Self:
        for name in self.measure:
            if self.samples < LEAST[name]:
                raise ValueError(f"measure: {name} needs {LEAST[name]} samples at least, and samples is {self.samples}")
        return self
