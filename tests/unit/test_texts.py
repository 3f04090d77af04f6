"""Generators that are told texts: the tokenizer and the encoder of a pipeline, what does not fit, and captions of the data."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import diffusers
import torch
import transformers

from tests.unit.test_generators import VAE
from trainer.config.adapt import Adapt
from trainer.config.run import Model
from trainer.models import Built, build_model
from trainer.spec import Generator

UNET: dict[str, Any] = {
    "sample_size": 4, "in_channels": 2, "out_channels": 2, "block_out_channels": (8, 16), "layers_per_block": 1,
    "down_block_types": ("CrossAttnDownBlock2D", "DownBlock2D"), "up_block_types": ("UpBlock2D", "CrossAttnUpBlock2D"),
    "norm_num_groups": 4, "attention_head_dim": 4, "cross_attention_dim": 8,
}  # fmt: skip
LENGTH = 12
LETTERS = "abcdefghijklmnopqrstuvwxyz0123456789"


def tokenizer(folder: Path) -> Any:
    """One that knows letters and digits, each a token."""
    folder.mkdir(parents=True, exist_ok=True)
    words = [*LETTERS, *(f"{letter}</w>" for letter in LETTERS), "<|startoftext|>", "<|endoftext|>"]
    (folder / "vocab.json").write_text(json.dumps({word: number for number, word in enumerate(words)}))
    (folder / "merges.txt").write_text("#version: 0.2\n")
    made: Any = transformers.CLIPTokenizer
    return made(str(folder / "vocab.json"), str(folder / "merges.txt"), model_max_length=LENGTH)


def encoder(width: int = 8, **more: Any) -> Any:
    words = 2 * len(LETTERS) + 2
    made: Any = transformers.CLIPTextModel
    return made(transformers.CLIPTextConfig(
        vocab_size=words, hidden_size=width, intermediate_size=16, num_hidden_layers=1, num_attention_heads=2,
        max_position_embeddings=LENGTH, bos_token_id=words - 2, eos_token_id=words - 1, pad_token_id=words - 1, **more,
    ))  # fmt: skip


def text_pipeline(folder: Path, *, width: int = 8, scheduler: dict[str, Any] | None = None, **unet: Any) -> str:
    """A pipeline like Stable Diffusion's, of a few thousand parameters, as diffusers saves it."""
    torch.manual_seed(4)
    network = diffusers.UNet2DConditionModel(**{**UNET, **unet})
    vae = diffusers.AutoencoderKL(**{**VAE, "shift_factor": None})
    settings: dict[str, Any] = {"clip_sample": False, "steps_offset": 1, "beta_schedule": "scaled_linear", **(scheduler or {})}
    made: Any = diffusers.StableDiffusionPipeline
    made(
        vae, encoder(width), tokenizer(folder / "tokenizer"), network, diffusers.DDIMScheduler(**settings), None, None,
        requires_safety_checker=False,
    ).save_pretrained(folder)  # fmt: skip
    return f"diffusers:{folder}"


def build(source: str, *, text: bool = True, **more: Any) -> Built:
    config = Model(source=source, adapt=Adapt(**{"in_channels": 1, **more}))
    return build_model(config, "auto", Generator(("a", "b"), True, "pipeline", text), 0)


def test_x(tmp_path):
    built = build(text_pipeline(tmp_path))
    print(built.report, built.head)
    assert built.beside.text.encode(["a dress", "b"], torch.device("cpu")).shape == (2, LENGTH, 8)
