"""Prior preservation: what the weights draw before a training, killed in the midst of it and later, on any number of ranks."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from tests.faults.test_diffusion import KILLED, file
from tests.trainers import Zygote, points, same
from tests.unit.test_texts import text_pipeline

DATA: dict[str, Any] = {"train": "digits:0-1/train", "val": "digits:0-1/val", "augment": {}}


def train(
    zygote: Zygote,
    folder: Path,
    pipe: str,
    *,
    world: int = 1,
    fault: str = "",
    samples: dict[str, int] | None = None,
    **sections: Any,
) -> list[int]:
    """A run on digits by their names whose prior are texts, on latents that are kept; LoRA alone learns."""
    task = {
        "condition": "text", "vae": "pipeline", "noise": {}, "drop": 0.3,
        "samples": {"steps": 2, "count": 0, "batch": 4, **(samples or {})},
        "prior": {"images": 14, "prompts": ["a digit", "a letter"], "seed": 7},
    }  # fmt: skip
    data = {**DATA, "cache": {"kind": "features", "path": str(folder / "kept")}}
    path = file(
        folder, model={"source": pipe, "args": {}, "adapt": {"in_channels": 1}}, optimizer={"kind": "adamw", "lr": 0.02},
        strategy={"kind": "lora", "rank": 2, "alpha": 16, "head": "keep"}, losses={"weights": {"prior": 0.5}},
        evaluate={"every": "12 steps"},
        **{"task": task, "train": {"steps": 12, "global_batch": 24, "micro_batch": 7, "clip": None}, "data": data, **sections},
    )  # fmt: skip
    zygote.preload(
        "diffusers.models.unets.unet_2d_condition", "diffusers.models.autoencoders.autoencoder_kl", "diffusers.schedulers",
        "peft", "transformers.models.clip.modeling_clip", "transformers.models.clip.tokenization_clip",
    )  # fmt: skip
    return zygote.run(path, folder, world=world, fault=fault)


def drawn(folder: Path) -> dict[str, np.ndarray[Any, Any]]:
    return {path.name: np.array(Image.open(path)) for path in sorted((folder / "run" / "prior").glob("*.png"))}


def test_a_prior_is_drawn_once_and_a_killed_run_ends_the_same(zygote: Zygote, tmp_path: Path) -> None:
    pipe = text_pipeline(tmp_path / "pipe")
    whole, broken, two = tmp_path / "whole", tmp_path / "broken", tmp_path / "two"
    assert train(zygote, whole, pipe) == [0]
    made = drawn(whole)
    assert list(made) == [f"{number:06d}.png" for number in range(14)]
    assert len({image.tobytes() for image in made.values()}) == 14

    assert train(zygote, broken, pipe, fault="prior-drawn@2=kill") == [KILLED]
    begun = {path: path.stat().st_mtime_ns for path in sorted((broken / "run" / "prior").glob("*.png"))}
    assert len(begun) == 8, "two of four batches"
    (damaged,) = [path for path in begun if path.name == "000005.png"]
    before = damaged.read_bytes()
    damaged.write_bytes(before[:-30])
    assert train(zygote, broken, pipe, fault="step@9=kill") == [KILLED]
    assert damaged.read_bytes() == before, "it was drawn again, with its batch"
    assert all(path.stat().st_mtime_ns == time for path, time in list(begun.items())[:4]), "and the others were not"
    (tmp_path / "pipe" / "unet" / "diffusion_pytorch_model.safetensors").rename(tmp_path / "away")
    free = {"steps": 3, "batch": 2}
    assert train(zygote, broken, pipe, samples=free) == [0], "the weights are needed no more, whatever may change freely"
    same(broken / "run", whole / "run")
    (tmp_path / "away").rename(tmp_path / "pipe" / "unet" / "diffusion_pytorch_model.safetensors")

    assert train(zygote, two, pipe, world=2, data={**DATA, "cache": "none"}) == [0, 0]
    for name, image in drawn(two).items():
        assert np.array_equal(image, made[name]), "whatever the number of ranks"
    keys = ("train/loss", "loss/task", "loss/prior", "val/loss")
    one, other = ([p[key] for p in points(folder / "run") for key in keys if key in p] for folder in (two, whole))
    assert one == pytest.approx(other, abs=3e-5)
    first = points(whole / "run")[0]
    assert first["train/loss"] == pytest.approx(first["loss/task"] + 0.5 * first["loss/prior"], abs=1e-6)
    assert first["loss/prior"] != pytest.approx(first["loss/task"], abs=1e-4)
    note = json.loads((whole / "run" / "prior" / "drawn.json").read_text())
    assert note["words"] == ["a digit", "a letter"]
    assert len(note["files"]) == 14
