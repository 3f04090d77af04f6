"""From `model` in the run file to an autoencoder: `diffusers:FOLDER[#vae]`, or `diffusers:AutoencoderKL` with its arguments."""

from __future__ import annotations

import inspect
from typing import Any

import torch
from torch import nn

from trainer.config import UserError
from trainer.config.run import Model
from trainer.models.adapt import seeded
from trainer.models.autoencoder import of_folder
from trainer.models.base import Built, LoadReport, Need
from trainer.models.diffusers import Source, fill
from trainer.models.diffusers import needs as of_part
from trainer.spec import InputSpec

KIND = "AutoencoderKL"
_HALF = 0.5


class Reconstructing(nn.Module):
    """An AutoencoderKL of diffusers, in one call from images to images."""

    def __init__(self, network: nn.Module) -> None:
        super().__init__()
        settings: Any = network.config
        self.network = network
        self.latents = (int(settings.latent_channels), 2 ** (len(settings.block_out_channels) - 1))

    def forward(self, images: torch.Tensor, noise: torch.Tensor | None = None) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        """(pictures, means and logarithms of the variances of the latents), of the means where there is no noise."""
        network: Any = self.network
        posterior = network.encode(images).latent_dist
        latents = posterior.mean if noise is None else posterior.mean + posterior.std * noise
        return network.decode(latents).sample, posterior.mean, posterior.logvar


def build_reconstructor(config: Model, seed: int, *, load_weights: bool) -> Built:
    """Build the autoencoder and fill it from its weights; see `build_model`. Raises UserError."""
    scheme, _, rest = config.source.partition(":")
    if scheme != "diffusers":
        raise UserError(f"model.source '{config.source}': an autoencoder is diffusers:FOLDER, or diffusers:{KIND} with its args")
    channels = config.adapt.in_channels
    if rest == KIND:
        network = _new(config, channels, seed)
        report = LoadReport(f"diffusers:{KIND}, no checkpoint read")
    else:
        if config.args:
            raise UserError(f"model.args cannot be set for {config.source}: its config.json says what it is")
        network, report = _saved(Source(of_folder(rest), config), channels, seed, load_weights=load_weights)
    made = Reconstructing(network)
    factor = made.latents[1]
    size = config.adapt.image_size
    if size is None:
        raise UserError("model.adapt.image_size is missing: an autoencoder takes many sizes; write it in pixels")
    if size % factor:
        below = size // factor * factor
        near = " or ".join(str(side) for side in (below, below + factor) if side)
        raise UserError(f"model.adapt.image_size is {size}, and {report.source} takes multiples of {factor}; write {near}")
    head = ("network.decoder.conv_out",)
    half = (_HALF,) * channels
    return Built(made, head, (), InputSpec(channels, size, half, half), report)


def reconstructor_needs(config: Model) -> list[Need]:
    """The files that an autoencoder is read from. Raises UserError."""
    rest = config.source.partition(":")[2]
    return [] if rest == KIND else of_part(of_folder(rest), config)


def _saved(source: Source, channels: int, seed: int, *, load_weights: bool) -> tuple[nn.Module, LoadReport]:
    """What a folder's settings say, with its weights or those that the run file names."""
    kind, given = source.settings["_class_name"], source.channels
    if kind != KIND:
        others = [name for name, (_, made) in source.parts.items() if made == KIND]
        raise UserError(
            f"model.source: {source.name} is a {kind}, and graft trains autoencoders of kind {KIND}"
            + (f"; name another part: {', '.join(others)}" if others else "")
        )
    if given != channels:
        raise UserError(f"{source.name} takes {given} channels; write model.adapt.in_channels: {given}")
    with seeded(seed):
        network: nn.Module = source.model(source.settings)
    if source.config.weights == "none" or not load_weights:
        return network, LoadReport(f"{source.name}, no checkpoint read")
    fill(network, source)
    return network, LoadReport(f"{source.name} ({source.config.weights})", matched=list(network.state_dict()))


def _new(config: Model, channels: int, seed: int) -> nn.Module:
    import diffusers

    if config.weights != "none":
        raise UserError(f"model.weights: weights of an autoencoder are read from its folder; write diffusers:FOLDER, not {KIND}")
    known = inspect.signature(diffusers.AutoencoderKL.__init__).parameters.keys() - {"self", "in_channels", "out_channels"}
    for key in config.args:
        if key not in known:
            raise UserError(f"model.args.{key} is no argument of diffusers' {KIND}; known: {', '.join(sorted(known))}")
    try:
        with seeded(seed):
            made: nn.Module = diffusers.AutoencoderKL(in_channels=channels, out_channels=channels, **config.args)
    except (TypeError, ValueError, RuntimeError, IndexError) as error:
        raise UserError(f"diffusers:{KIND} does not take model.args {dict(config.args)}: {error}") from error
    return made
