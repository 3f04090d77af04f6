"""The task of two networks that make pictures of two classes of each other, without pairs (CycleGAN)."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, ClassVar, Literal, Self

from pydantic import Field, ValidationError, model_validator

from trainer.config.errors import UserError
from trainer.config.fidelity import LEAST, Distances
from trainer.config.model import Model
from trainer.config.pictures import Critics as Common
from trainer.config.pictures import Painting
from trainer.config.targets import Facts, Known, LooksAt, only
from trainer.config.tasks.translate import Decoder


class Critics(Common):
    """The two critics, one of each class."""

    loss: Literal["hinge", "lsgan", "non_saturating"] = "lsgan"


class Config(Painting):
    """Make pictures of one class of pictures of another and back again, with no pairs (Zhu, Park, Isola and Efros 2017)."""

    kind: Literal["cycle"] = "cycle"
    metrics: ClassVar[tuple[str, ...]] = ("loss", "cycle_psnr", "cycle_mae")
    translates: ClassVar[bool] = True
    channels: Literal[1, 3] = Field(3, description="of the pictures of the second class; of the first: model.adapt.in_channels")
    losses: list[Literal["adversarial", "cycle", "identity"]] = Field(
        ["adversarial", "cycle"], description="cycle weighs 10 and identity 5, unless losses.weights says otherwise"
    )
    adversary: Critics = Field(default_factory=Critics)
    fidelity: Distances | None = Field(None, description="how like each class what is made of the other is; none: not measured")
    back: Model | None = Field(None, description="the network of the way back; left out: another one like model")
    decoder: Decoder = Field(default_factory=Decoder, description="of classifiers' trunks")
    residual: Literal["auto"] | bool = Field(
        "auto", description="the networks' outputs are added to their inputs; auto: of a network of another run as it was there"
    )

    @classmethod
    def chosen_by(cls, task: Mapping[str, Any]) -> str:
        """How like the second class pictures become, where that is measured; the loss does not tell."""
        asked = task.get("fidelity")
        try:
            return cls.best if asked is None else f"{Distances.model_validate(asked).names[0]}_forth"
        except ValidationError:  # told where the section itself is read
            return cls.best

    @property
    def weights(self) -> Mapping[str, float]:
        """Those of the paper (section 4 and 5.2)."""
        return {name: weight for name, weight in (("cycle", 10.0), ("identity", 5.0)) if name in self.losses}

    @property
    def networks(self) -> dict[str, Model]:
        features = None if self.fidelity is None else self.fidelity.features
        found = {"back": self.back, "fidelity.features": features}
        return {key: model for key, model in found.items() if model is not None}

    def moved(self, change: Callable[[Model], Model]) -> Self:
        found: dict[str, Any] = {}
        if self.back is not None:
            found["back"] = change(self.back)
        if self.fidelity is not None and self.fidelity.features is not None:
            found["fidelity"] = self.fidelity.model_copy(update={"features": change(self.fidelity.features)})
        return self.model_copy(update=found)

    def measured(self, facts: Facts | None = None) -> tuple[str, ...]:
        """Those of the way there and back, and the distances of each way."""
        named = () if self.fidelity is None else self.fidelity.names
        return (*self.metrics, *(f"{name}_{way}" for way in ("forth", "back") for name in named))

    def measurable(self, held: Facts) -> None:
        """Each class has as many pictures as the distances need, on the side of those of the data and of those made of them."""
        asked = () if self.fidelity is None else self.fidelity.measure
        of = only(held, "class", self.kind)
        for name, count in zip(of.target.labels, of.counts, strict=True):
            for measure in asked:
                if count < LEAST[measure]:
                    raise UserError(
                        f"data.val has {count} pictures of '{name}', and task.fidelity.measure: {measure} needs {LEAST[measure]} "
                        "at least; add some, or leave it out"
                    )

    @property
    def looks_at(self) -> LooksAt:
        return "targets"

    def learnt(self, facts: Facts) -> tuple[Known, ...]:
        """The class, which is one of two."""
        found = only(facts, "class", self.kind)
        if len(found.target.labels) != 2:
            many = found.target.labels
            shown = ", ".join(many[:6]) + (", …" if len(many) > 6 else "")
            raise UserError(
                f"data.train has {len(many)} classes ({shown}), and task cycle goes between two; write data.classes: "
                f"[{many[0]}, {many[1]}], first what pictures are made of"
            )
        return (found,)

    def goes_with(self, run: Any) -> None:
        """What looks at one network, or at pairs, is refused."""
        super().goes_with(run)
        if self.fidelity is not None and run.data.val is None:
            raise ValueError("task.fidelity is measured at evaluations, which need validation data; set data.val")
        for key, metric in run.watched.items():
            if self.residual is True and run.data.val is not None and metric.removeprefix("val/") in self.metrics:
                raise ValueError(
                    f"task.residual: true begins with networks that change nothing, and by {metric} ({key}) nothing is better; "
                    "write task.fidelity: {measure: [kid], features: {source: torchvision:resnet18, weights: DEFAULT}}, whose "
                    "first figure then chooses the best, or residual: false"
                )
        if run.losses.balance.kind != "fixed":
            raise ValueError(
                f"losses.balance: {run.losses.balance.kind} goes by the layers of one network, and task cycle trains two against "
                "two critics; write losses.weights: {cycle: 10}"
            )
        if run.strategy.kind in ("blocks", "gradual", "probe") or getattr(run.strategy, "layer_decay", None) is not None:
            what = "layer_decay" if run.strategy.kind == "full" else f"kind: {run.strategy.kind}"
            raise ValueError(
                f"strategy.{what} counts the blocks of one network, and task cycle trains two; write strategy: {{kind: full}}, "
                "head, norms, biases or lora"
            )
        if run.model.adapt.in_channels != self.channels and "identity" in self.losses:
            raise ValueError(
                f"losses: identity gives a network what it should make, and the classes have {run.model.adapt.in_channels} and "
                f"{self.channels} channels; leave it out"
            )

    @model_validator(mode="after")
    def _round(self) -> Self:
        if len(set(self.losses)) < len(self.losses) or not {"adversarial", "cycle"} <= set(self.losses):
            raise ValueError(
                f"losses are {', '.join(self.losses) or 'none'}; without pairs both are needed: write [adversarial, cycle], or "
                "[adversarial, cycle, identity]"
            )
        return self
