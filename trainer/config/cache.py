"""The key `data.cache` of the run file: what of a frozen first part is computed once."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import BeforeValidator, Field, WithJsonSchema, model_validator

from trainer.config.base import Section


class Cache(Section):
    """Features of the frozen first part of the network, kept on disk and read in place of the images.

    Written short as `cache: none`, `auto` or `features`; with `views` or `dtype` features are meant.
    """

    kind: Literal["auto", "none", "features"] = Field(
        "auto", description="auto: where it pays and changes nothing; features: always, or refuse; none: never"
    )
    views: int | None = Field(
        None, ge=1, description="with augmentation: so many changed copies of each sample; epoch e sees copy e modulo views"
    )
    dtype: Literal["auto", "fp32", "bf16", "fp16"] = Field(
        "auto", description="auto: as the network makes them; another one is smaller and rounds"
    )
    path: str | None = Field(None, description="the folder; none: ~/.cache/graft/features. Several nodes need one that all see")
    max_gb: float | None = Field(
        None, gt=0, description="gigabytes that may be filled; none: auto takes half of the free disk and a quarter of the memory"
    )

    @model_validator(mode="after")
    def _asked(self) -> Cache:
        if self.kind != "features" and (self.views is not None or self.dtype != "auto"):
            raise ValueError(f"views and dtype are for kind: features, and it is {self.kind}; write kind: features")
        return self


def _long(value: Any) -> Any:
    if isinstance(value, str):
        return {"kind": value}
    if isinstance(value, dict) and "kind" not in value and ("views" in value or value.get("dtype", "auto") != "auto"):
        return {**value, "kind": "features"}
    return value


_SHORT: dict[str, Any] = {"enum": ["auto", "none", "features"]}
Choice = Annotated[Cache, BeforeValidator(_long), WithJsonSchema({"anyOf": [_SHORT, Cache.model_json_schema()]})]
