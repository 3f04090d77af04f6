"""Tiny pipelines of networks that are told texts by several encoders, as diffusers saves them."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import diffusers
import torch
import transformers

from tests.unit.test_generators import VAE
from tests.unit.test_texts import LETTERS, UNET, encoder, tokenizer
from trainer.config.adapt import Adapt
from trainer.config.run import Model
from trainer.models import Built, build_model
from trainer.spec import Generator

SD3: dict[str, Any] = {
    "sample_size": 4, "patch_size": 2, "in_channels": 2, "out_channels": 2, "num_layers": 2, "attention_head_dim": 4,
    "num_attention_heads": 2, "joint_attention_dim": 16, "caption_projection_dim": 8, "pooled_projection_dim": 16,
    "pos_embed_max_size": 4,
}  # fmt: skip
FLUX: dict[str, Any] = {
    "patch_size": 1, "in_channels": 8, "num_layers": 1, "num_single_layers": 1, "attention_head_dim": 8,
    "num_attention_heads": 1, "joint_attention_dim": 16, "pooled_projection_dim": 8, "guidance_embeds": True,
    "axes_dims_rope": (4, 2, 2),
}  # fmt: skip
PIXART: dict[str, Any] = {
    "num_attention_heads": 2, "attention_head_dim": 4, "in_channels": 2, "out_channels": 4, "num_layers": 1, "sample_size": 4,
    "patch_size": 2, "cross_attention_dim": 8, "caption_channels": 16,
}  # fmt: skip
XL: dict[str, Any] = {
    **UNET, "cross_attention_dim": 16, "addition_embed_type": "text_time", "addition_time_embed_dim": 4,
    "projection_class_embeddings_input_dim": 32, "transformer_layers_per_block": 1, "use_linear_projection": True,
}  # fmt: skip


def t5_tokenizer() -> Any:
    """One that knows letters and digits, each a token."""
    words = [("<pad>", 0.0), ("</s>", 0.0), ("<unk>", 0.0), ("▁", -1.0), *((letter, -2.0) for letter in LETTERS)]
    made: Any = transformers.T5Tokenizer
    return made(vocab=words, extra_ids=0)


def t5(width: int = 16) -> Any:
    made: Any = transformers.T5EncoderModel
    return made(transformers.T5Config(
        vocab_size=4 + len(LETTERS), d_model=width, d_kv=4, d_ff=16, num_layers=1, num_heads=2, feed_forward_proj="gated-gelu"
    ))  # fmt: skip


def clip(folder: Path, *, projection: bool) -> tuple[Any, Any]:
    """A tokenizer, and an encoder with or without a projection of the whole text."""
    made = encoder(8, projection_dim=8)
    if projection:
        whole: Any = transformers.CLIPTextModelWithProjection
        made = whole(made.config)
    return tokenizer(folder), made


def scheduler(**settings: Any) -> Any:
    made: Any = diffusers.FlowMatchEulerDiscreteScheduler
    return made(**settings)


def sd3_pipeline(folder: Path, *, last: bool = True, vae: dict[str, Any] | None = None, **network: Any) -> str:
    """Like Stable Diffusion 3's, of a few thousand parameters; `last`: with the third encoder."""
    torch.manual_seed(4)
    made: Any = diffusers.StableDiffusion3Pipeline
    one, other = (clip(folder / name, projection=True) for name in ("tokenizer", "tokenizer_2"))
    codec = diffusers.AutoencoderKL(**{**VAE, **(vae or {})})
    made(
        diffusers.SD3Transformer2DModel(**{**SD3, **network}), scheduler(shift=3.0), codec,
        one[1], one[0], other[1], other[0], t5() if last else None, t5_tokenizer() if last else None,
    ).save_pretrained(folder)  # fmt: skip
    return f"diffusers:{folder}"


def flux_pipeline(folder: Path, *, dynamic: bool = True, **network: Any) -> str:
    """Like Flux's, of a few thousand parameters; its noise depends on the size where it is `dynamic`."""
    torch.manual_seed(4)
    made: Any = diffusers.FluxPipeline
    cutter, reader = clip(folder / "tokenizer", projection=False)
    settings = {"use_dynamic_shifting": True, "shift": 3.0, "base_image_seq_len": 2, "max_image_seq_len": 9} if dynamic else {}
    made(
        scheduler(**settings), diffusers.AutoencoderKL(**VAE), reader, cutter, t5(), t5_tokenizer(),
        diffusers.FluxTransformer2DModel(**{**FLUX, **network}),
    ).save_pretrained(folder)  # fmt: skip
    return f"diffusers:{folder}"


def pixart_pipeline(folder: Path, *, sigma: bool = False, vae: dict[str, Any] | None = None, **network: Any) -> str:
    """Like PixArt's, alpha or sigma, of a few thousand parameters."""
    torch.manual_seed(4)
    made: Any = diffusers.PixArtSigmaPipeline if sigma else diffusers.PixArtAlphaPipeline
    made(
        t5_tokenizer(), t5(), diffusers.AutoencoderKL(**{**VAE, "shift_factor": None, **(vae or {})}),
        diffusers.PixArtTransformer2DModel(**{**PIXART, **network}), diffusers.DPMSolverMultistepScheduler(),
    ).save_pretrained(folder)  # fmt: skip
    return f"diffusers:{folder}"


def xl_pipeline(folder: Path, *, zeros: bool = True, **network: Any) -> str:
    """Like Stable Diffusion XL's, of a few thousand parameters."""
    torch.manual_seed(4)
    made: Any = diffusers.StableDiffusionXLPipeline
    one = clip(folder / "tokenizer", projection=False)
    other = clip(folder / "tokenizer_2", projection=True)
    made(
        diffusers.AutoencoderKL(**{**VAE, "shift_factor": None}), one[1], other[1], one[0], other[0],
        diffusers.UNet2DConditionModel(**{**XL, **network}),
        diffusers.EulerDiscreteScheduler(beta_schedule="scaled_linear", beta_start=0.00085, beta_end=0.012),
        force_zeros_for_empty_prompt=zeros, add_watermarker=False,
    ).save_pretrained(folder)  # fmt: skip
    return f"diffusers:{folder}"


def build(source: str, **more: Any) -> Built:
    """The network of a pipeline, for latents of its autoencoder and texts."""
    config = Model(source=source, adapt=Adapt(**{"in_channels": 1, "image_size": 8, **more}))
    return build_model(config, "auto", Generator(("a", "b"), True, "pipeline", True), 0)
