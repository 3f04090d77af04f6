"""`diffusers:FOLDER[#PART]`: a model of diffusers, for a task that generates as a whole, for others the part that sees images.

FOLDER is a model that diffusers saved (`config.json`, `diffusion_pytorch_model.safetensors`), or a pipeline
(`model_index.json`), of which PART is one model (`unet`, `vae`, `transformer`); a repository of the hub (`owner/name`) likewise.

What generates stands in `trainer.models.denoisers`. What makes a trunk of a classifier:

- `AutoencoderKL` and `VQModel`: the encoder, its latent averaged over the image;
- `UNet2DModel`: the way down and the middle block at time step 0, averaged over the image (Xiang et al. 2023, "Denoising
  Diffusion Autoencoders are Unified Self-supervised Learners"; Baranchuk et al. 2022, "Label-Efficient Semantic Segmentation with
  Diffusion Models").

Networks that need a text, latents or a class beside the image see no image alone, and are refused as trunks.
"""

from __future__ import annotations

import importlib
from dataclasses import dataclass
from functools import cached_property, partial
from pathlib import Path
from typing import Any

import torch
from torch import nn

from trainer.config import UserError, nearest
from trainer.config.run import Model
from trainer.models import denoisers
from trainer.models.base import Checkpoint, Need, Origin
from trainer.models.file import read_checkpoint
from trainer.models.generator import Denoiser
from trainer.models.place import Place, refuse_code
from trainer.models.torchvision import is_path

STEM, PICKLES = "diffusion_pytorch_model", ("diffusion_pytorch_model",)
TRUNKS = ("AutoencoderKL", "UNet2DModel", "VQModel")
_HALF = (0.5,)


def origin(rest: str, config: Model) -> Origin:
    """The trunk of a generator with a linear head over its averaged features. Raises UserError for what makes no trunk."""
    source = Source(rest, config)
    kind = source.settings["_class_name"]
    if kind not in TRUNKS:
        raise UserError(
            f"{source.name}: a {kind} takes more than an image (latents, a time, a text or a class), so it is no trunk of a "
            f"classifier; those that are: {', '.join(TRUNKS)}"
            + (f"; name another part: {', '.join(source.parts)}" if source.parts else "")
        )
    for key in config.args:
        raise UserError(f"model.args.{key} cannot be set for diffusers:{rest}: its config.json says what it is")
    size = source.settings.get("sample_size")
    size = max(size) if isinstance(size, list | tuple) else size
    return Origin(
        f"diffusers:{rest}", partial(source.make, channels=source.channels), sized=True, image_size=int(size) if size else None,
        mean=_HALF * source.channels, std=_HALF * source.channels, read=None if config.weights == "none" else source.read,
        shaped=source.make, channels=source.channels,
    )  # fmt: skip


def denoiser(rest: str, config: Model) -> Denoiser:
    """What generates, as a whole. Raises UserError for what does not."""
    return denoisers.of(rest, config)


def needs(rest: str, config: Model) -> list[Need]:
    """The files of the part."""
    source = Source(rest, config)
    what = f"the weights {config.weights} of diffusers:{rest}"
    if is_path(config.weights) and not Path(config.weights).is_dir():
        return [Need(what, Path(config.weights))]
    inside = f"{source.part}/" if source.part else ""
    beside = ("model_index.json", "scheduler/scheduler_config.json", "graft.json") if source.part else ("graft.json",)
    others = (*beside, f"{inside}config.json")
    return source.place.needs(what, others, f"{inside}{STEM}", tuple(f"{inside}{name}" for name in PICKLES))


def load(rest: str) -> nn.Module:
    """The whole model that a folder (or a part of a pipeline) holds, with its weights: float32, on the CPU. Raises UserError."""
    source = Source(rest, Model(source=f"diffusers:{rest}"))
    network: nn.Module = source.model(source.settings)
    fill(network, source)
    return network


def fill(network: nn.Module, source: Source) -> None:
    """Give the whole model of a source its weights. Raises UserError where they are not all there."""
    tensors = source.tensors()
    own = network.state_dict()
    lacking = [name for name in own if name not in tensors]
    if lacking or any(own[name].shape != tensors[name].shape for name in own):
        raise UserError(f"{source.name}: its weights do not fit its config.json ({(lacking or ['other shapes'])[0]}): partial")
    network.load_state_dict({name: tensors[name] for name in own})


@dataclass
class Source:
    rest: str
    config: Model

    @cached_property
    def place(self) -> Place:
        return Place.of(self.rest.partition("#")[0])

    @cached_property
    def parts(self) -> dict[str, list[Any]]:
        """The models of a pipeline by name: [library, class]; empty for a model's own folder."""
        index = self.place.json("model_index.json") or {}
        refuse_code(index, self.place.name)
        return {
            name: value for name, value in index.items()
            if not name.startswith("_") and isinstance(value, list) and len(value) == 2 and value[0] == "diffusers"
            and not str(value[1]).endswith("Scheduler")
        }  # fmt: skip

    @cached_property
    def part(self) -> str:
        """The part of the pipeline; empty for a model's own folder. Raises UserError."""
        _, hash_, name = self.rest.partition("#")
        if self.place.json("model_index.json") is None:
            if hash_:
                raise UserError(f"{self.place.name}: is no pipeline (it has no model_index.json), so it has no part '{name}'")
            return ""
        if name not in self.parts:
            said = f"has no part '{name}' of diffusers{nearest(name, self.parts)}" if name else "is a pipeline"
            raise UserError(f"{self.place.name}: {said}; write the part: " + " or ".join(f"#{p}" for p in self.parts))
        return name

    @property
    def name(self) -> str:
        return self.place.name + (f"#{self.part}" if self.part else "")

    @cached_property
    def settings(self) -> dict[str, Any]:
        """`config.json` of the part; `_class_name` is one of diffusers' models."""
        inside = f"{self.part}/" if self.part else ""
        found = self.place.json(f"{inside}config.json")
        if found is None:
            raise UserError(f"{self.name}: has no {inside}config.json: partial, or no saved model of diffusers")
        refuse_code(found, self.name)
        kind = str(found.get("_class_name"))
        library = importlib.import_module("diffusers")
        made = getattr(library, kind, None)
        if not (isinstance(made, type) and issubclass(made, nn.Module)):
            raise UserError(f"{self.name}: diffusers has no model '{kind}' (_class_name in config.json)")
        return found

    @property
    def channels(self) -> int:
        """Those of a picture that it takes."""
        return int(self.settings.get("in_channels") or 3) // (1 + self.beside)

    @property
    def beside(self) -> bool:
        """Whether it takes a source picture behind the noised one, as many channels: as an export of graft's says, else where it
        takes twice what it gives (InstructPix2Pix)."""
        said = (self.place.json("graft.json") or {}).get("source") if self.part in denoisers.ROLES else None
        if isinstance(said, bool):
            return said
        return self.settings.get("in_channels") == 2 * int(self.settings.get("out_channels") or 0)

    def model(self, settings: dict[str, Any]) -> Any:
        library = importlib.import_module("diffusers")
        try:
            return getattr(library, settings["_class_name"]).from_config(settings)
        except Exception as error:  # whatever its constructor raises
            told = f"{type(error).__name__}: {error}".splitlines()[0][:300]
            raise UserError(f"{self.name}: diffusers does not take its config.json ({told})") from error

    def make(self, classes: int, size: int, channels: int) -> nn.Module:
        whole = self.model({**self.settings, "in_channels": channels})
        trunk = _Down if self.settings["_class_name"] == "UNet2DModel" else Encoder
        network: nn.Module = trunk(whole, classes)
        return network

    def tensors(self) -> dict[str, torch.Tensor]:
        weights = self.config.weights
        if is_path(weights) and not Path(weights).is_dir():
            return dict(read_checkpoint(Path(weights)).tensors)
        if weights != "DEFAULT" and not is_path(weights):
            raise UserError(f"model.weights: diffusers:{self.rest} has the weights DEFAULT (its own), a path, or none")
        if is_path(weights):
            return Place(Path(weights)).weights(STEM, PICKLES)
        inside = f"{self.part}/" if self.part else ""
        return self.place.weights(f"{inside}{STEM}", tuple(f"{inside}{name}" for name in PICKLES))

    def read(self) -> Checkpoint:
        # what the trunk leaves out (the way up, the decoder) is not left over by mistake
        with torch.device("meta"):
            plain = self.make(1, 64, self.channels).state_dict()
        tensors = self.tensors()
        if self.beside and "conv_in.weight" in tensors:  # what sees a picture alone has no source beside it
            tensors["conv_in.weight"] = tensors["conv_in.weight"][:, : self.channels]
        return Checkpoint(f"{self.name} ({self.config.weights})", {name: v for name, v in tensors.items() if name in plain})


class Encoder(nn.Module):
    """Images [n, c, h, w] -> logits [n, classes], by the encoder of an autoencoder; names of tensors as in the whole."""

    def __init__(self, whole: Any, classes: int) -> None:
        super().__init__()
        self.encoder = whole.encoder
        self.quant_conv = whole.quant_conv
        self.head = nn.Linear(width_of(self, whole), classes)

    def features(self, images: torch.Tensor) -> torch.Tensor:
        """The latent (of a VAE: mean and log variance), averaged over the image: [n, width]."""
        latent = self.encoder(images)
        latent = latent if self.quant_conv is None else self.quant_conv(latent)
        return torch.as_tensor(latent.mean((2, 3)))

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        return torch.as_tensor(self.head(self.features(images)))


class _Down(nn.Module):
    """Images [n, c, h, w] -> logits [n, classes], by the way down and the middle of a UNet; names of tensors as in the whole."""

    def __init__(self, whole: Any, classes: int) -> None:
        super().__init__()
        self.time_proj, self.time_embedding = whole.time_proj, whole.time_embedding
        self.conv_in, self.down_blocks, self.mid_block = whole.conv_in, whole.down_blocks, whole.mid_block
        self.head = nn.Linear(int(whole.config.block_out_channels[-1]), classes)

    def features(self, images: torch.Tensor) -> torch.Tensor:
        """The middle block's output at time step 0 (an image without noise), averaged over the image: [n, width]."""
        times = torch.zeros(len(images), device=images.device)
        embedded = self.time_embedding(self.time_proj(times).to(images.dtype))
        skip = images
        hidden = self.conv_in(images)
        for block in self.down_blocks:
            if hasattr(block, "skip_conv"):
                hidden, _, skip = block(hidden, embedded, skip)
            else:
                hidden, _ = block(hidden, embedded)
        hidden = hidden if self.mid_block is None else self.mid_block(hidden, embedded)
        return torch.as_tensor(hidden.mean((2, 3)))

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        return torch.as_tensor(self.head(self.features(images)))


def width_of(trunk: Encoder, whole: Any) -> int:
    if trunk.quant_conv is not None:
        return int(trunk.quant_conv.out_channels)
    return int(whole.config.latent_channels) * (2 if type(whole).__name__ == "AutoencoderKL" else 1)
