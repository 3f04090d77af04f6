"""What an autoencoder says of the images of a run, kept: latents are drawn from it anew in every epoch."""

from __future__ import annotations

import json
import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch

from trainer.config import Run
from trainer.data.transforms import training
from trainer.features import identity
from trainer.features.choose import DTYPES, Choice
from trainer.features.cut import Cut
from trainer.features.kept import Features
from trainer.references import fingerprint
from trainer.runtime import Runtime
from trainer.spec import Autoencoder, Beside, InputSpec

_WHERE = "the autoencoder"


@dataclass(frozen=True)
class LatentChoice(Choice):
    """Whether the mean and the deviation of each sample's latents are kept."""

    def __str__(self) -> str:
        if self.cut is None:
            return f"not kept: {self.why}"
        shape, kind = " x ".join(map(str, self.cut.shape)), str(self.dtype).removeprefix("torch.")
        views = f", {self.views} views of each sample" if self.views > 1 else ""
        return f"{shape} {kind} of {_WHERE}, mean and deviation{views} ({self.why})"


def choose_latents(run: Run, beside: Beside | None, spec: InputSpec, *, samples: int, seen: int) -> LatentChoice:
    """Whether they are kept in a run with so many training `samples`, of which it sees `seen` in all."""
    config = run.data.cache
    if beside is None or beside.vae is None:
        return LatentChoice(None, "the noise is another in every step, and there is no autoencoder before it")
    augment = training(run.data, spec).random is not None
    if config.kind in ("none", "decoded"):
        return LatentChoice(None, f"data.cache is {config.kind}")
    if augment and config.views is None:
        return LatentChoice(
            None, "data.augment changes each sample anew in every epoch; data.cache.views=4 keeps four changed copies of each"
        )
    if beside.vae.factor == 1:
        return LatentChoice(None, "latents as large as the images could not be told from them")
    if config.kind == "auto" and seen <= samples:
        return LatentChoice(None, "no sample is seen twice")
    views = min(config.views or 1, math.ceil(seen / samples)) if augment else 1
    shape = (2 * beside.channels, beside.size, beside.size)
    cut = Cut(_WHERE, 0, 0, shape, torch.float32, (*beside.image, beside.image[1]), None, {}, "meta", (), (), (), 0.0)
    return LatentChoice(cut, "it never learns", views, DTYPES.get(config.dtype, torch.float32))


class Latents(Features):
    """Rows [2 * channels, h, w]: the mean of a sample's latents, then their deviation, as the generator takes them."""

    def __init__(self, run: Run, runtime: Runtime, vae: Autoencoder, spec: InputSpec, choice: Choice) -> None:
        assert choice.cut is not None
        self._vae = vae
        super().__init__(run, runtime, vae.network, [], spec, choice)

    def _about(self, *, random: bool) -> dict[str, Any]:
        config: Any = self._vae.network
        device = self._runtime.device
        common = identity.pixels(self._run, self._spec, "diffusers", random=random, tf32=self._tf32, device=device)
        return {
            **common, "latents": json.loads(config.to_json_string()), "weights": fingerprint(self._vae.network),
            "dtype": str(self._choice.dtype),
        }  # fmt: skip

    def _first_part(self) -> Callable[[torch.Tensor], torch.Tensor]:
        return lambda images: torch.cat(self._vae.encode(images), dim=1)

    def _both(self, images: torch.Tensor, features: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        return self._first_part()(images), features
