"""A generator that is told texts: trained, killed and resumed, sampled, exported, its adapters loaded by plain diffusers."""

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
from tests.unit.test_texts import rewrite, text_pipeline
from trainer.commands import main
from trainer.rundir import RunDir


def train(zygote: Zygote, folder: Path, pipe: str, *, world: int = 1, fault: str = "") -> list[int]:
    """A run on digits by their names, put into a text; LoRA alone learns."""
    task = {
        "condition": "text", "vae": "pipeline", "noise": {}, "template": "the {}", "drop": 0.3,
        "samples": {"steps": 4, "count": 6, "batch": 3, "guidance": 2.0, "prompts": ["the 3", "the 1", "7"]},
    }  # fmt: skip
    strategy = {"kind": "lora", "rank": 2, "alpha": 16, "head": "keep"}
    path = file(
        folder, model={"source": pipe, "args": {}, "adapt": {"in_channels": 1}}, task=task, strategy=strategy,
        optimizer={"kind": "adamw", "lr": 0.02},
    )  # fmt: skip
    zygote.ask({"do": "import", "names": [
        "diffusers.models.unets.unet_2d_condition", "diffusers.models.autoencoders.autoencoder_kl",
        "diffusers.schedulers", "peft",
        "transformers.models.clip.modeling_clip", "transformers.models.clip.tokenization_clip",
    ]})  # fmt: skip
    return zygote.run(path, folder, world=world, fault=fault)


def test_texts_are_learnt_sampled_and_exported(
    zygote: Zygote, tmp_path: Path, capsys: pytest.CaptureFixture[str], caplog: pytest.LogCaptureFixture
) -> None:
    pipe = text_pipeline(tmp_path / "pipe")
    rewrite(tmp_path / "pipe" / "unet" / "config.json", _diffusers_version="0.6.0")  # like the first published ones
    whole, broken = tmp_path / "whole", tmp_path / "broken"
    assert train(zygote, whole, pipe, world=2) == [0, 0]
    assert KILLED in train(zygote, broken, pipe, world=2, fault="step@9:1=kill")
    encoder = tmp_path / "pipe" / "text_encoder" / "model.safetensors"
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

    run = RunDir(whole / "run")
    ask = ["sample", str(run.path), "--device", "cpu", "--seeds", "5", "--steps", "5", "--guidance", "3"]
    out = tmp_path / "made"
    assert main([*ask, "--prompt", "the 3", "--prompt", "a text of many more letters", "--out", str(out)]) == 0
    assert (out / "samples.csv").read_text().splitlines()[:2] == ["file,text,seed", "the_3-000005.png,the 3,5"]
    assert "1 of 1 texts have more tokens than the 12 that the encoder sees" in caplog.text
    assert "other weights now" not in caplog.text
    encoder.write_bytes(before[:-4] + bytes(4))
    assert main([*ask, "--prompt", "the 4", "--out", str(out)]) == 0
    assert "has other weights now than when run was trained" in caplog.text
    encoder.write_bytes(before)
    for wrong, message in (
        ([], "write --prompt TEXT"),
        (["--classes", "3"], "--classes: run is told texts; write --prompt TEXT"),
    ):
        assert main([*ask, *wrong, "--out", str(out)]) == 2
        assert message in capsys.readouterr().err

    assert main(["export", str(run.path), "--device", "cpu"]) == 0
    own = np.array(Image.open(out / "the_3-000005.png")).astype(int)
    made: Any = diffusers.StableDiffusionPipeline
    asked = {"prompt": "the 3", "guidance_scale": 3.0, "num_inference_steps": 5}

    def image(pipe: Any) -> Any:
        pipe.set_progress_bar_config(disable=True)
        found = pipe(**asked, generator=torch.Generator().manual_seed(5), output_type="np").images[0, :, :, 0]
        return np.round(found * 255).astype(int)

    assert np.abs(image(made.from_pretrained(run.export)) - own).max() <= 1
    rewrite(tmp_path / "pipe" / "unet" / "config.json", _diffusers_version=diffusers.__version__)
    plain = made.from_pretrained(tmp_path / "pipe")
    plain.scheduler = diffusers.DDIMScheduler.from_pretrained(run.export, subfolder="scheduler")
    assert np.abs(image(plain) - own).max() > 1, "something was learnt"
    plain.load_lora_weights(run.export)
    assert np.abs(image(plain) - own).max() <= 1
    card = (run.export / "README.md").read_text()
    assert "pipeline_tag: text-to-image" in card
    assert "load_lora_weights" in card
    assert json.loads((run.export / "graft.json").read_text())["classes"] == []
