"""How a pretrained network is fitted to a new task: the config class."""

from __future__ import annotations

from typing import Literal

from pydantic import Field, model_validator

from trainer.config.base import Section
from trainer.config.heads import Layers, NewRows, OneHead, Rows, check_rows

OLD_CHANNELS = {1: ("grey",), 3: ("red", "green", "blue"), 4: ("red", "green", "blue", "alpha")}


class Adapt(Section):
    """How the pretrained network is fitted to the new task."""

    in_channels: int = Field(3, ge=1, le=64, description="channels of the input; the first layer is adapted when it differs")
    channels: Literal["repeat", "zero", "map"] = Field(
        "repeat",
        description="repeat: filters in turn, rescaled; zero: the first channels keep theirs, others begin at zero; map: by name",
    )
    channel_names: list[str] = Field(default_factory=list, description="for map: the names of the input's channels, in order")
    channel_map: dict[str, str] = Field(
        default_factory=dict, description="for map: a channel's name: whose filters it takes (red, green, blue; of one: grey)"
    )
    image_size: int | None = Field(None, ge=8, le=4096, description="side in pixels; none: what the weights were trained at")
    head: Rows = Field(
        "auto",
        description="auto: keep a pretrained head whose classes are the task's, and of weights of one's own the rows of shared "
        "classes; shared: the rows of shared classes of any weights; else a new one",
    )
    new_rows: NewRows = Field(
        "random", description="how the rows of new classes begin, where others are kept: mean: as the mean of all old rows"
    )
    like: dict[str, str] = Field(default_factory=dict, description="new class: the class of the weights whose row it begins with")
    rename: dict[str, str] = Field(default_factory=dict, description="class of the task: what the weights call it")
    take: str | None = Field(None, description="of a run with several heads: the one that rows are taken of")
    layers: Layers | None = Field(
        None, discriminator="kind", description="what the head is made of; none: as in the run or network, else linear"
    )
    heads: dict[str, OneHead] = Field(default_factory=dict, description="of several heads: what is different for one, by name")
    head_module: str | None = Field(None, description="dotted name of the output layer, where it cannot be found")

    @model_validator(mode="after")
    def _fits(self) -> Adapt:
        if self.channels == "map":
            if len(self.channel_names) != self.in_channels:
                raise ValueError(
                    f"channel_names has {len(self.channel_names)} names for in_channels {self.in_channels}; name every channel"
                )
            if len(set(self.channel_names)) != len(self.channel_names):
                raise ValueError("channel_names has a name twice; each channel needs its own")
            for name in self.channel_map:
                if name not in self.channel_names:
                    raise ValueError(f"channel_map: '{name}' is none of channel_names ({', '.join(self.channel_names)})")
        elif self.channel_names or self.channel_map:
            raise ValueError("channel_names and channel_map go with channels: map; write it, or leave them out")
        check_rows(self.head, self.like, self.rename)
        for name, one in self.heads.items():
            try:
                check_rows(one.head or self.head, one.like, one.rename)
            except ValueError as error:
                raise ValueError(f"heads.{name}: {error}") from None
        return self

    def of(self, output: str) -> OneHead:
        """What holds for one head: its own settings over those for all."""
        own = self.heads.get(output, OneHead())
        everywhere = {} if output else {"like": self.like, "rename": self.rename}
        return OneHead(
            head=own.head or self.head, new_rows=own.new_rows or self.new_rows, take=own.take or self.take,
            layers=own.layers or self.layers, **{"like": own.like, "rename": own.rename, **everywhere},
        )  # fmt: skip
