"""The autoencoder of a latent generator: it stays as it is, and stands beside the network that learns."""

from __future__ import annotations

from typing import Any

import torch
from torch import nn

from trainer.config import UserError
from trainer.config.run import Model
from trainer.models.base import Need
from trainer.models.place import Place

KINDS = ("AutoencoderKL", "VQModel")
_NAMES = ("vae", "vqvae", "movq")  # what pipelines call it


def beside(place: str) -> str | None:
    """The autoencoder of a pipeline's folder, as FOLDER#PART; none where there is none, or the folder is no pipeline."""
    index = Place.of(place).json("model_index.json") or {}
    part = next((name for name in _NAMES if isinstance(index.get(name), list) and index[name][0] == "diffusers"), None)
    return None if part is None else f"{place}#{part}"


def of_folder(rest: str) -> str:
    """FOLDER or FOLDER#PART: the autoencoder of a pipeline, where no part is named."""
    return rest if "#" in rest else beside(rest) or rest


class Codec:
    """An autoencoder of diffusers, read when it is first moved to a device.

    Latents are shifted and scaled as its settings say (`shift_factor`, `scaling_factor`), so that their deviation is near 1. It
    computes in 32 bits whatever the training's precision: several overflow in 16.
    """

    def __init__(self, rest: str) -> None:
        from trainer.models.diffusers import Source

        self.source = rest
        self._source = Source(rest, Model(source=f"diffusers:{rest}"))
        settings = self._source.settings
        self.kind = str(settings["_class_name"])
        self.name = self._source.name
        if self.kind not in KINDS:
            raise UserError(f"task.vae: {self.name} is a {self.kind}; an autoencoder is one of {', '.join(KINDS)}")
        self.channels = int(settings.get("latent_channels") or 4)
        self.in_channels = int(settings.get("in_channels") or 3)
        self.factor = 2 ** (len(settings.get("block_out_channels") or (0,)) - 1)
        self._scale = float(settings.get("scaling_factor") or 1.0)
        self.shift = float(settings.get("shift_factor") or 0.0)
        if settings.get("latents_mean") is not None or settings.get("latents_std") is not None:
            raise UserError(f"task.vae: {self.name} scales each channel of its latents (latents_mean), which graft cannot do")
        self._network: nn.Module | None = None

    @staticmethod
    def of(asked: str, own: str | None) -> Codec:
        """`pipeline`: `own`, the one that stands beside the generator; or `diffusers:FOLDER[#PART]`. Raises UserError."""
        if asked == "pipeline":
            if own is None:
                raise UserError(
                    "task.vae: pipeline, and there is no autoencoder beside the generator of model.source; write "
                    "task.vae: diffusers:FOLDER, or leave it out to learn on pixels"
                )
            return Codec(own)
        return Codec(of_folder(asked.partition(":")[2]))

    def needs(self) -> list[Need]:
        """The files that it is read from."""
        from trainer.models.diffusers import needs

        return needs(self.source, Model(source=f"diffusers:{self.source}"))

    @property
    def network(self) -> nn.Module:
        """The autoencoder with its weights, read at the first call."""
        if self._network is None:
            from trainer.models.diffusers import load

            self._network = load(self.source).eval().requires_grad_(False)
        return self._network

    def to(self, device: torch.device) -> None:
        if next(self.network.parameters()).device != device:
            self.network.to(device)

    def encode(self, images: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        self.to(images.device)
        network: Any = self.network
        with torch.no_grad(), torch.autocast(images.device.type, enabled=False):
            if self.kind == "VQModel":
                mean = network.encode(images.float()).latents
                deviation = torch.zeros_like(mean)
            else:
                posterior = network.encode(images.float()).latent_dist
                mean, deviation = posterior.mean, posterior.std
            return (mean - self.shift) * self._scale, deviation * self._scale

    def decode(self, latents: torch.Tensor) -> torch.Tensor:
        self.to(latents.device)
        network: Any = self.network
        with torch.no_grad(), torch.autocast(latents.device.type, enabled=False):
            return torch.as_tensor(network.decode(latents.float() / self._scale + self.shift).sample)
