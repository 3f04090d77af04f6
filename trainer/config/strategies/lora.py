"""Small adapters beside the frozen weights."""

from __future__ import annotations

from typing import Literal

from pydantic import Field, model_validator

from trainer.config.learning import Strategy

Method = Literal["lora", "dora", "loha", "lokr", "ia3", "oft"]


class Config(Strategy):
    """Train adapters of the peft library in the trunk, and in full the head, new input layers and what `train` names.

    lora: Hu et al. 2022; dora: Liu et al. 2024; loha: Hyeon-Woo et al. 2022; lokr: Yeh et al. 2024; ia3: Liu et al. 2022;
    oft: Qiu et al. 2023.
    """

    kind: Literal["lora"] = "lora"
    method: Method = "lora"
    rank: int = Field(8, ge=1, le=4096, description="inner width of an adapter; of oft the size of a block, of ia3 nothing")
    alpha: int | None = Field(None, ge=1, description="scale: an adapter counts alpha / rank times; none: as much as the rank")
    dropout: float = Field(0.0, ge=0, lt=1, description="on the input of an adapter")
    targets: Literal["auto"] | list[str] = Field(
        "auto",
        description="names of layers, their last parts, or patterns with *; auto: all linear layers, else convolutions",
    )
    head: Literal["full", "keep"] = Field(
        "full", description="keep: the head does not learn, so that the adapters are all that is learnt; full: it does, in full"
    )
    train: list[str] = Field(default_factory=list, description="parts that learn in full, by name or pattern")

    @model_validator(mode="after")
    def _fits(self) -> Config:
        if self.targets != "auto" and not self.targets:
            raise ValueError("targets is empty; name layers, or write auto")
        if self.method in ("ia3", "oft") and self.alpha is not None:
            raise ValueError(f"{self.method} has no alpha; leave it out")
        if self.method == "ia3" and self.dropout:
            raise ValueError("ia3 has no dropout; leave it out")
        return self
