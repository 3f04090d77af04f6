"""A transformer that is told texts by several encoders: trained, killed and resumed, sampled, exported, loaded by diffusers."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import diffusers
import numpy as np
import torch
from PIL import Image

from tests.faults.test_diffusion import KILLED, file, sheets
from tests.trainers import Zygote, points, same
from tests.unit.joint import sd3_pipeline
from trainer.commands import main
from trainer.rundir import RunDir


def train(zygote: Zygote, folder: Path, pipe: str, *, world: int = 1, fault: str = "") -> list[int]:
    """A run on digits by their names; LoRA alone learns."""
    task = {
        "condition": "text", "vae": "pipeline", "noise": {}, "template": "the {}", "drop": 0.3,
        "times": {"kind": "logit_normal"}, "draws": 1,
        "samples": {"steps": 2, "count": 3, "batch": 2, "guidance": 2.0, "prompts": ["the 3", "the 1", "7"]},
    }  # fmt: skip
    path = file(
        folder, model={"source": pipe, "args": {}, "adapt": {"in_channels": 1, "image_size": 8}}, task=task,
        strategy={"kind": "lora", "rank": 2, "alpha": 16, "head": "keep"}, optimizer={"kind": "adamw", "lr": 0.02},
        train={"steps": 8}, evaluate={"every": "4 steps"}, checkpoint={"every": "3 steps"},
    )  # fmt: skip
    zygote.preload(
        "diffusers.models.transformers.transformer_sd3",
        "diffusers.models.autoencoders.autoencoder_kl",
        "diffusers.schedulers",
        "peft",
        "transformers.models.clip.modeling_clip",
        "transformers.models.clip.tokenization_clip",
        "transformers.models.t5.modeling_t5",
        "transformers.models.t5.tokenization_t5",
    )
    return zygote.run(path, folder, world=world, fault=fault)


def test_stable_diffusion_3_is_resumed_sampled_and_exported(zygote: Zygote, tmp_path: Path) -> None:
    pipe = sd3_pipeline(tmp_path / "pipe")
    whole, broken = tmp_path / "whole", tmp_path / "broken"
    assert train(zygote, whole, pipe, world=2) == [0, 0]
    assert KILLED in train(zygote, broken, pipe, world=2, fault="step@5:1=kill")
    encoder = tmp_path / "pipe" / "text_encoder_3" / "model.safetensors"
    before = encoder.read_bytes()
    encoder.write_bytes(before[:-4] + bytes(4))
    assert 3 in train(zygote, broken, pipe)
    assert "the text encoder of the pipeline has other weights now" in zygote.started[-1].text()
    encoder.write_bytes(before)
    assert train(zygote, broken, pipe, world=2) == [0, 0]
    same(broken / "run", whole / "run")
    one, other = sheets(broken / "run"), sheets(whole / "run")
    assert all(np.array_equal(one[name], other[name]) for name in one)
    losses = [p["val/loss"] for p in points(whole / "run") if "val/loss" in p]
    assert losses[-1] < losses[0]

    run, out = RunDir(whole / "run"), tmp_path / "made"
    made: Any = diffusers.StableDiffusion3Pipeline
    ask = ["sample", str(run.path), "--device", "cpu", "--seeds", "5", "--steps", "5", "--guidance", "3", "--prompt", "the 3"]
    assert main([*ask, "--out", str(out)]) == 0
    assert main(["export", str(run.path), "--device", "cpu"]) == 0
    own = np.array(Image.open(out / "the_3-000005.png")).astype(int)

    def image(pipe: Any) -> Any:
        pipe.set_progress_bar_config(disable=True)
        asked = {
            "prompt": "the 3",
            "guidance_scale": 3.0,
            "num_inference_steps": 5,
            "generator": torch.Generator().manual_seed(5),
        }
        return np.round(pipe(**asked, output_type="np").images[0, :, :, 0] * 255).astype(int)

    assert np.abs(image(made.from_pretrained(run.export)) - own).max() <= 1
    plain = made.from_pretrained(tmp_path / "pipe")
    assert np.abs(image(plain) - own).max() > 1, "something was learnt"
    plain.load_lora_weights(run.export)
    assert np.abs(image(plain) - own).max() <= 1
    card = (run.export / "README.md").read_text()
    assert "pipeline_tag: text-to-image" in card
    assert "pipe = StableDiffusion3Pipeline.from_pretrained(" in card
    assert "load_lora_weights" in card
    assert json.loads((run.export / "graft.json").read_text())["classes"] == []
