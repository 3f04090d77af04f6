"""Transformers that are told texts by several encoders: trained, killed and resumed, sampled, exported, loaded by diffusers."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import diffusers
import numpy as np
import pytest
import torch
from PIL import Image

from tests.faults.test_diffusion import KILLED, file, sheets
from tests.trainers import Zygote, points, same
from tests.unit.joint import flux_pipeline, sd3_pipeline
from trainer.commands import main
from trainer.rundir import RunDir


def train(zygote: Zygote, folder: Path, pipe: str, *, world: int = 1, fault: str = "", steps: int = 8) -> list[int]:
    """A run on digits by their names; LoRA alone learns."""
    task = {
        "condition": "text", "vae": "pipeline", "noise": {}, "template": "the {}", "drop": 0.3,
        "times": {"kind": "logit_normal"}, "draws": 1,
        "samples": {"steps": 2, "count": 3, "batch": 2, "guidance": 2.0, "prompts": ["the 3", "the 1", "7"]},
    }  # fmt: skip
    path = file(
        folder, model={"source": pipe, "args": {}, "adapt": {"in_channels": 1, "image_size": 8}}, task=task,
        strategy={"kind": "lora", "rank": 2, "alpha": 16, "head": "keep"}, optimizer={"kind": "adamw", "lr": 0.02},
        train={"steps": steps}, evaluate={"every": "4 steps"}, checkpoint={"every": "3 steps"},
    )  # fmt: skip
    zygote.preload(
        "diffusers.models.transformers.transformer_sd3",
        "diffusers.models.transformers.transformer_flux",
        "diffusers.models.autoencoders.autoencoder_kl",
        "diffusers.schedulers",
        "peft",
        "transformers.models.clip.modeling_clip",
        "transformers.models.clip.tokenization_clip",
        "transformers.models.t5.modeling_t5",
        "transformers.models.t5.tokenization_t5",
    )
    return zygote.run(path, folder, world=world, fault=fault)


def exported(run: RunDir, pipe: Path, made: Any, out: Path, **asked: Any) -> None:
    """Images of `graft sample`, of the exported pipeline, and of the adapters over the old one are the same."""
    ask = ["sample", str(run.path), "--device", "cpu", "--seeds", "5", "--steps", "5", "--guidance", "3", "--prompt", "the 3"]
    assert main([*ask, "--out", str(out)]) == 0
    assert main(["export", str(run.path), "--device", "cpu"]) == 0
    own = np.array(Image.open(out / "the_3-000005.png")).astype(int)

    def image(pipe: Any) -> Any:
        pipe.set_progress_bar_config(disable=True)
        given = {"prompt": "the 3", "num_inference_steps": 5, "generator": torch.Generator().manual_seed(5), **asked}
        return np.round(pipe(**given, output_type="np").images[0, :, :, 0] * 255).astype(int)

    assert np.abs(image(made.from_pretrained(run.export)) - own).max() <= 1
    plain = made.from_pretrained(pipe)
    assert np.abs(image(plain) - own).max() > 1, "something was learnt"
    plain.load_lora_weights(run.export)
    assert np.abs(image(plain) - own).max() <= 1
    card = (run.export / "README.md").read_text()
    assert "pipeline_tag: text-to-image" in card
    assert f"pipe = {made.__name__}.from_pretrained(" in card
    assert "load_lora_weights" in card


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
    exported(RunDir(whole / "run"), tmp_path / "pipe", diffusers.StableDiffusion3Pipeline, tmp_path / "made", guidance_scale=3.0)
    told = json.loads((whole / "run" / "export" / "graft.json").read_text())
    assert told["classes"] == []


def test_flux_is_trained_sampled_and_exported(zygote: Zygote, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    pipe = flux_pipeline(tmp_path / "pipe")
    assert train(zygote, tmp_path, pipe, steps=6) == [0]
    asked = {"true_cfg_scale": 3.0, "negative_prompt": "", "guidance_scale": 3.5, "height": 8, "width": 8}
    run = RunDir(tmp_path / "run")
    exported(run, tmp_path / "pipe", diffusers.FluxPipeline, tmp_path / "made", **asked)
    capsys.readouterr()
    ask = ["sample", str(run.path), "--device", "cpu", "--prompt", "a", "--sampler", "heun"]
    assert main([*ask, "--out", str(tmp_path / "no")]) == 2
    assert "has no shift by the size of an image; write euler" in capsys.readouterr().err
