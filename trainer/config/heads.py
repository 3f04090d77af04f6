"""What a head is made of, and which rows of an old one it begins with: the config classes."""

from __future__ import annotations

from typing import Literal

from pydantic import Field

from trainer.config.base import Kind, Section

Rows = Literal["auto", "keep", "shared", "new"]
NewRows = Literal["random", "zero", "mean"]
Begin = Literal["random", "zero"]


class LinearHead(Kind):
    """One layer: linear, or the convolution that the network has in its place."""

    kind: Literal["linear"] = "linear"
    begin: Begin = Field("random", description="how the output layer of a new head begins")


class MlpHead(Kind):
    """Hidden layers (each: linear, normalisation, activation, dropout), then the output layer."""

    kind: Literal["mlp"] = "mlp"
    width: int | None = Field(None, ge=1, le=65536, description="of the hidden layers; none: that of the trunk's features")
    depth: int = Field(1, ge=1, le=8, description="hidden layers")
    activation: Literal["gelu", "relu", "silu", "tanh"] = "gelu"
    norm: bool = Field(False, description="layer normalisation before each activation")
    dropout: float = Field(0.0, ge=0, lt=1)
    begin: Begin = Field("random", description="how the output layer of a new head begins")


class AttentionHead(Kind):
    """Attention over the trunk's tokens or map instead of its pooling, then normalisation and the output layer.

    One learned query: pooling by multi-head attention (Lee et al. 2019, section 3.2; Zhai et al. 2022, section 3.2).
    """

    kind: Literal["attention"] = "attention"
    num_heads: int | None = Field(None, ge=1, le=256, description="of the attention; none: about one for 64 channels")
    dropout: float = Field(0.0, ge=0, lt=1, description="on the pooled features")
    pool_from: str | None = Field(
        None, description="dotted name of the module whose output is attended to; none: what the trunk pools, found by itself"
    )
    begin: Begin = Field("random", description="how the output layer of a new head begins")


Layers = LinearHead | MlpHead | AttentionHead


class OneHead(Section):
    """One of several heads; what is left out is as `model.adapt` has it for all (`like` and `rename`: nothing)."""

    head: Rows | None = None
    new_rows: NewRows | None = None
    like: dict[str, str] = Field(default_factory=dict, description="new class: the class of the weights whose row it begins with")
    rename: dict[str, str] = Field(default_factory=dict, description="class of the task: what the weights call it")
    take: str | None = Field(None, description="the head of the run that rows are taken of; none: the one of the same name")
    layers: Layers | None = Field(None, discriminator="kind")


def check_rows(head: str | None, like: dict[str, str], rename: dict[str, str]) -> None:
    """Raise ValueError for names of rows that contradict each other."""
    if head in ("keep", "new") and (like or rename):
        raise ValueError(f"like and rename go with rows that are kept by name; with head: {head} leave them out")
    both = set(like) & set(rename)
    if both:
        raise ValueError(
            f"'{min(both)}' stands in like and in rename; rename says that it is the same class, like that it is not"
        )
