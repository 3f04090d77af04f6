"""The key `data.cache` of the run file: what is computed once, of a frozen first part or of the images themselves."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import BeforeValidator, Field, WithJsonSchema, model_validator

from trainer.config.base import Section


class Cache(Section):
    """Features of the frozen first part of the network, kept on disk and read in place of the images; or images, decoded and
    resized.

    Written short as `cache: none`, `auto`, `features` or `decoded`; with `views` or `dtype` features are meant, with `side`
    decoded images.
    """

    kind: Literal["auto", "none", "features", "decoded"] = Field(
        "auto",
        description="auto: features, where it pays and changes nothing; features: always, or refuse; decoded: the images as "
        "they are before they are changed by chance; none: never",
    )
    side: int | None = Field(
        None,
        ge=8,
        description="decoded, with augment.crop: resized: the short side that crops are drawn from, instead of the file's",
    )
    views: int | None = Field(
        None, ge=1, description="with augmentation: so many changed copies of each sample; epoch e sees copy e modulo views"
    )
    dtype: Literal["auto", "fp32", "bf16", "fp16"] = Field(
        "auto", description="auto: as the network makes them; another one is smaller and rounds"
    )
    path: str | None = Field(
        None,
        description="the folder; none: ~/.cache/graft/features (or decoded). Several nodes need one that all see",
    )
    max_gb: float | None = Field(
        None, gt=0, description="gigabytes that may be filled; none: auto takes half of the free disk and a quarter of the memory"
    )

    @model_validator(mode="after")
    def _asked(self) -> Cache:
        if self.kind != "features" and (self.views is not None or self.dtype != "auto"):
            raise ValueError(f"views and dtype are for kind: features, and it is {self.kind}; write kind: features")
        if self.kind != "decoded" and self.side is not None:
            raise ValueError(f"side is for kind: decoded, and it is {self.kind}; write kind: decoded")
        return self


def _long(value: Any) -> Any:
    if isinstance(value, str):
        return {"kind": value}
    if isinstance(value, dict) and "kind" not in value and ("views" in value or value.get("dtype", "auto") != "auto"):
        return {**value, "kind": "features"}
    if isinstance(value, dict) and "kind" not in value and value.get("side") is not None:
        return {**value, "kind": "decoded"}
    return value


_SHORT: dict[str, Any] = {"enum": ["auto", "none", "features", "decoded"]}
Choice = Annotated[Cache, BeforeValidator(_long), WithJsonSchema({"anyOf": [_SHORT, Cache.model_json_schema()]})]
