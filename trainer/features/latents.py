"""What an autoencoder says of the images of a run, kept: latents are drawn from it anew in every epoch."""

from __future__ import annotations

import json
from collections.abc import Callable
from typing import Any

import torch

from trainer.config import Run
from trainer.features import identity
from trainer.features.choose import DTYPES, Choice, Kept, against_keeping
from trainer.features.kept import Features
from trainer.references import fingerprint
from trainer.runtime import Runtime
from trainer.spec import Autoencoder, Beside, InputSpec


def choose_latents(run: Run, beside: Beside | None, spec: InputSpec, *, samples: int, seen: int) -> Choice:
    """Whether the mean and the deviation of each sample's latents are kept, in a run with so many training `samples`, of which
    it sees `seen` in all.
    """
    config = run.data.cache
    if beside is None or beside.vae is None:
        return Choice(None, "the noise is another in every step, and there is no autoencoder before it")
    if beside.source:
        return Choice(None, "what the autoencoder says of pairs is not kept")
    if config.kind in ("none", "decoded"):
        return Choice(None, f"data.cache is {config.kind}")
    if beside.vae.factor == 1:
        return Choice(None, "latents as large as the images could not be told from them")
    against, views = against_keeping(run, spec, samples=samples, seen=seen)
    if against:
        return Choice(None, against)
    shape, dtype = (2 * beside.channels, beside.size, beside.size), DTYPES.get(config.dtype, torch.float32)
    return Choice(Kept("of the autoencoder, mean and deviation", shape, torch.float32, dtype, views), "it never learns")


class Latents(Features):
    """Rows [2 * channels, h, w]: the mean of a sample's latents, then their deviation, as the generator takes them."""

    def __init__(self, run: Run, runtime: Runtime, vae: Autoencoder, spec: InputSpec, kept: Kept) -> None:
        self._vae = vae
        super().__init__(run, runtime, vae.network, [], spec, kept)

    def _about(self, *, random: bool) -> dict[str, Any]:
        config: Any = self._vae.network
        device = self._runtime.device
        common = identity.pixels(self._run, self._spec, "diffusers", random=random, tf32=self._tf32, device=device)
        return {
            **common, "latents": json.loads(config.to_json_string()), "weights": fingerprint(self._vae.network),
            "dtype": str(self._kept.dtype),
        }  # fmt: skip

    def _first_part(self) -> Callable[[torch.Tensor], torch.Tensor]:
        return lambda images: torch.cat(self._vae.encode(images), dim=1)

    def _both(self, images: torch.Tensor, features: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        return self._first_part()(images), features
