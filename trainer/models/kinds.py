"""The networks of diffusers that generate: what of each is adapted, and how it is called."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn

from trainer.config import UserError
from trainer.models.generator import Shape
from trainer.models.text import Shapes
from trainer.spec import Flow, Generator


@dataclass(frozen=True)
class Kind:
    """A class of diffusers: how it is built for a shape, called, and what of it is adapted.

    `rows(settings)`: how many its class tables have; `text(settings)`: the shapes of what it is told of a text, 0 for any number
    of tokens. `spare`: the last row always stands for no class. `channels(settings)`: of an image that it takes. `packed`: a
    square of pixels comes as one token, the channel varying slowest. `flow`: it learns flow alone; `betas`: anything but flow.
    `vae`: the kinds of autoencoders on whose latents it works; none: of any, or pixels. `more(settings, wanted,
    side, factor)`: what it is called with besides, for images of `side` pixels, `factor` to one of what it makes. `square`: it
    learnt places, and makes one size. `sourced`: it may be given a source picture beside the noised one.
    """

    call: Callable[..., torch.Tensor]
    build: Callable[[Mapping[str, Any], Shape], dict[str, Any]]
    inputs: str
    outputs: str
    head: tuple[str, ...]
    rows: Callable[[Mapping[str, Any]], int] = lambda settings: 0
    text: Callable[[Mapping[str, Any]], Shapes] = lambda settings: {}
    spare: bool = False
    channels: Callable[[Mapping[str, Any]], int] = lambda settings: int(settings.get("in_channels") or 3)
    packed: int = 1
    flow: Flow | None = None
    betas: bool = False
    vae: tuple[str, ...] = ()
    more: Callable[[Mapping[str, Any], Generator, int, int], dict[str, Any]] = lambda settings, wanted, side, factor: {}
    square: bool = False
    sourced: bool = False


def _unet(network: nn.Module, images: torch.Tensor, times: torch.Tensor, told: Mapping[str, torch.Tensor]) -> torch.Tensor:
    return network(images, times, class_labels=told.get("classes"), return_dict=False)[0]  # type: ignore[no-any-return]


def _dit(network: nn.Module, images: torch.Tensor, times: torch.Tensor, told: Mapping[str, torch.Tensor]) -> torch.Tensor:
    classes = told["classes"] if "classes" in told else torch.zeros(len(images), dtype=torch.int64, device=images.device)
    return network(images, timestep=times, class_labels=classes, return_dict=False)[0]  # type: ignore[no-any-return]


def _outputs(settings: Mapping[str, Any], channels: int) -> int:
    """As many channels as it takes, or twice as many where it also gave variances (Nichol and Dhariwal 2021)."""
    old = settings.get("in_channels")
    return channels * (2 if old is not None and settings.get("out_channels") == 2 * old else 1)


def _unet_settings(settings: Mapping[str, Any], shape: Shape) -> dict[str, Any]:
    if settings.get("class_embed_type") is not None:
        raise UserError(
            f"a UNet2DModel whose classes are given as '{settings['class_embed_type']}' has no table of classes; "
            "only class_embed_type: null can be told of classes"
        )
    return {
        **settings, "in_channels": shape.taken, "out_channels": _outputs(settings, shape.channels), "sample_size": shape.size,
        "num_class_embeds": shape.rows or None,
    }  # fmt: skip


def _dit_settings(settings: Mapping[str, Any], shape: Shape) -> dict[str, Any]:
    return {
        **settings, "in_channels": shape.taken, "out_channels": _outputs(settings, shape.channels), "sample_size": shape.size,
        "num_embeds_ada_norm": shape.rows - 1,
    }  # fmt: skip


DISTILLED = 3.5  # as diffusers' pipeline and its examples of training have it
PIXART_SIZED = 128
FLUX_TIMES = 1000  # a Flux network multiplies its times by it
_MORE = ("addition_embed_type", "encoder_hid_dim", "encoder_hid_dim_type", "class_embed_type", "num_class_embeds",
         "time_cond_proj_dim")  # fmt: skip


def _text(settings: Mapping[str, Any]) -> Shapes:
    """Of the text that a UNet2DConditionModel is told."""
    width = settings.get("cross_attention_dim") or 1280
    widths = set(width) if isinstance(width, list | tuple) else {width}
    if len(widths) > 1:
        raise UserError(f"a UNet2DConditionModel with cross_attention_dim: {width} is told several texts, which graft cannot do")
    return {"text": (0, int(widths.pop()))}


def _conditioned(network: nn.Module, images: torch.Tensor, times: torch.Tensor, told: Mapping[str, torch.Tensor]) -> torch.Tensor:
    return network(images, times, encoder_hidden_states=told["text"], return_dict=False)[0]  # type: ignore[no-any-return]


def _xl(
    network: nn.Module, images: torch.Tensor, times: torch.Tensor, told: Mapping[str, torch.Tensor], factor: int
) -> torch.Tensor:  # fmt: skip
    """Also told the size of the picture as it was, where it was cut, and its size now (Podell et al. 2023, section 2.2)."""
    height, width = (factor * side for side in images.shape[-2:])
    sizes = torch.tensor([[height, width, 0, 0, height, width]], dtype=told["pooled"].dtype, device=images.device)
    added = {"text_embeds": told["pooled"], "time_ids": sizes.expand(len(images), -1)}
    said = network(images, times, encoder_hidden_states=told["text"], added_cond_kwargs=added, return_dict=False)
    return said[0]  # type: ignore[no-any-return]


def _xl_text(settings: Mapping[str, Any]) -> Shapes:
    numbers = int(settings.get("projection_class_embeddings_input_dim") or 0) - 6 * int(
        settings.get("addition_time_embed_dim") or 0
    )
    return {**_text(settings), "pooled": (numbers,)}


def _alone(settings: Mapping[str, Any], shape: Shape) -> None:
    """Raises UserError where a source picture is to stand beside the noised one."""
    if shape.source:
        what = str(settings["_class_name"]) + (" of Stable Diffusion XL" if "addition_embed_type" in settings else "")
        raise UserError(
            f"task.pairs: a {what} is given no source picture by graft; write a source that is a UNet2DModel, a "
            "DiTTransformer2DModel, or the UNet2DConditionModel of Stable Diffusion 1 or 2"
        )


def _xl_settings(settings: Mapping[str, Any], shape: Shape) -> dict[str, Any]:
    _alone(settings, shape)
    made = _conditioned_settings({**settings, "addition_embed_type": None}, shape)
    return {**made, "addition_embed_type": settings["addition_embed_type"]}


def _conditioned_settings(settings: Mapping[str, Any], shape: Shape) -> dict[str, Any]:
    for key in _MORE:
        if settings.get(key) is not None:
            raise UserError(
                f"a UNet2DConditionModel with {key}: {settings[key]} is told more than texts, which graft cannot do; those of "
                "Stable Diffusion 1, 2 and XL are told nothing else"
            )
    return {
        **settings, "in_channels": shape.taken, "out_channels": _outputs(settings, shape.channels), "sample_size": shape.size,
    }  # fmt: skip


def _sd3(network: nn.Module, images: torch.Tensor, times: torch.Tensor, told: Mapping[str, torch.Tensor]) -> torch.Tensor:
    said = network(
        images, encoder_hidden_states=told["text"], pooled_projections=told["pooled"], timestep=times, return_dict=False
    )
    return said[0]  # type: ignore[no-any-return]


def _flux(
    network: nn.Module, images: torch.Tensor, times: torch.Tensor, told: Mapping[str, torch.Tensor], guidance: float | None = None
) -> torch.Tensor:  # fmt: skip
    """Squares of 2 x 2 pixels are its tokens, told of their places; so is how strongly it is guided, where it was distilled."""
    count, channels, height, width = images.shape
    rows, columns = height // 2, width // 2
    tokens = images.reshape(count, channels, rows, 2, columns, 2).permute(0, 2, 4, 1, 3, 5).reshape(count, rows * columns, -1)
    places = torch.zeros(rows, columns, 3, device=images.device)
    places[..., 1] += torch.arange(rows, device=images.device)[:, None]
    places[..., 2] += torch.arange(columns, device=images.device)[None, :]
    said = network(
        tokens, encoder_hidden_states=told["text"], pooled_projections=told["pooled"], timestep=times / FLUX_TIMES,
        img_ids=places.reshape(-1, 3), txt_ids=torch.zeros(told["text"].shape[1], 3, device=images.device),
        guidance=None if guidance is None else torch.full((count,), guidance, device=images.device), return_dict=False,
    )[0]  # fmt: skip
    given = said.shape[-1] // 4
    return torch.as_tensor(
        said.reshape(count, rows, columns, given, 2, 2).permute(0, 3, 1, 4, 2, 5).reshape(count, given, height, width)
    )


def _pixart(
    network: nn.Module, images: torch.Tensor, times: torch.Tensor, told: Mapping[str, torch.Tensor], side: int | None = None
) -> torch.Tensor:  # fmt: skip
    """Of which tokens there are it is told as well; and of the size in pixels, where it learnt that (Chen et al. 2024)."""
    added: dict[str, Any] = {"resolution": None, "aspect_ratio": None}
    if side is not None:
        one = torch.ones(len(images), 1, dtype=told["text"].dtype, device=images.device)
        added = {"resolution": side * one.expand(-1, 2), "aspect_ratio": one}
    said = network(
        images, encoder_hidden_states=told["text"], encoder_attention_mask=told["mask"], timestep=times, added_cond_kwargs=added,
        return_dict=False,
    )  # fmt: skip
    return said[0]  # type: ignore[no-any-return]


def _sized(settings: Mapping[str, Any]) -> bool:
    """Whether a PixArt network is told the size of an image."""
    said = settings.get("use_additional_conditions")
    return settings.get("sample_size", 128) == PIXART_SIZED if said is None else bool(said)


def _pixart_settings(settings: Mapping[str, Any], shape: Shape) -> dict[str, Any]:
    _alone(settings, shape)
    sized = _sized(settings)
    if sized and shape.size != PIXART_SIZED:
        raise UserError(
            f"a PixArtTransformer2DModel that is told the size of an image is told it by its pipeline for latents of "
            f"{PIXART_SIZED} x {PIXART_SIZED} alone, and these are {shape.size} x {shape.size}; leave model.adapt.image_size out"
        )
    return {
        **settings, "in_channels": shape.channels, "out_channels": _outputs(settings, shape.channels), "sample_size": shape.size,
        "use_additional_conditions": sized,
    }  # fmt: skip


def guidance_of(wanted: Generator) -> float:
    """How strongly a distilled network is guided."""
    return DISTILLED if wanted.distilled is None else wanted.distilled


def _sd3_settings(settings: Mapping[str, Any], shape: Shape) -> dict[str, Any]:
    _alone(settings, shape)
    return {
        **settings, "in_channels": shape.channels, "out_channels": _outputs(settings, shape.channels), "sample_size": shape.size
    }  # fmt: skip


def _flux_settings(settings: Mapping[str, Any], shape: Shape) -> dict[str, Any]:
    _alone(settings, shape)
    old, given = settings.get("in_channels") or 64, settings.get("out_channels")
    if given not in (None, old):
        raise UserError(
            f"a FluxTransformer2DModel that takes {old} channels and gives {given} makes images of other images (Fill, Depth, "
            "Canny), which graft cannot do; name one that takes as many as it gives"
        )
    if settings.get("patch_size") not in (None, 1):
        raise UserError(f"a FluxTransformer2DModel with patch_size: {settings['patch_size']} is not known here; those with 1 are")
    return {**settings, "in_channels": 4 * shape.channels, "out_channels": None if given is None else 4 * shape.channels}


def _pooled(text: str, pooled: str, wide: int, narrow: int) -> Callable[[Mapping[str, Any]], Shapes]:
    def shapes(settings: Mapping[str, Any]) -> Shapes:
        return {"text": (0, int(settings.get(text) or wide)), "pooled": (int(settings.get(pooled) or narrow),)}

    return shapes


KINDS = {
    "UNet2DModel": Kind(
        _unet, _unet_settings, "conv_in", "conv_out", ("conv_norm_out",),
        lambda settings: int(settings.get("num_class_embeds") or 0), sourced=True,
    ),
    "DiTTransformer2DModel": Kind(
        _dit, _dit_settings, "pos_embed.proj", "proj_out_2", ("proj_out_1",),
        lambda settings: int(settings.get("num_embeds_ada_norm") or 0) + 1, spare=True, square=True, sourced=True,
    ),
    "UNet2DConditionModel": Kind(
        _conditioned, _conditioned_settings, "conv_in", "conv_out", ("conv_norm_out",), text=_text, sourced=True,
    ),
    "SD3Transformer2DModel": Kind(
        _sd3, _sd3_settings, "pos_embed.proj", "proj_out", ("norm_out",), flow=Flow(2), vae=("AutoencoderKL",), square=True,
        text=_pooled("joint_attention_dim", "pooled_projection_dim", 4096, 2048),
    ),
    "FluxTransformer2DModel": Kind(
        _flux, _flux_settings, "x_embedder", "proj_out", ("norm_out",), flow=Flow(2, even=True), vae=("AutoencoderKL",),
        text=_pooled("joint_attention_dim", "pooled_projection_dim", 4096, 768), packed=2,
        channels=lambda settings: int(settings.get("in_channels") or 64) // 4,
        more=lambda settings, wanted, side, factor: {"guidance": guidance_of(wanted)} if settings.get("guidance_embeds") else {},
    ),
    "PixArtTransformer2DModel": Kind(
        _pixart, _pixart_settings, "pos_embed.proj", "proj_out", (), vae=("AutoencoderKL",), betas=True,
        text=lambda settings: {"text": (0, int(settings.get("caption_channels") or 4096)), "mask": (0,)},
        channels=lambda settings: int(settings.get("in_channels") or 4),
        more=lambda settings, wanted, side, factor: {"side": side} if _sized(settings) else {}, square=True,
    ),
}  # fmt: skip
_XL = Kind(
    _xl, _xl_settings, "conv_in", "conv_out", ("conv_norm_out",), text=_xl_text, vae=("AutoencoderKL",), betas=True,
    more=lambda settings, wanted, side, factor: {"factor": factor},
)  # fmt: skip


def kind_of(settings: Mapping[str, Any]) -> Kind:
    """What is known of a network with these settings, of one of the `KINDS`."""
    return _XL if settings.get("addition_embed_type") == "text_time" else KINDS[settings["_class_name"]]
