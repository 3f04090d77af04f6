"""The task diffusion: killed, started again, the same end; on any number of ranks the same losses and the same images."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image
from safetensors.torch import save_file

from tests.network import small
from tests.trainers import NETWORK, Zygote, points, run_file, same
from tests.unit.test_generators import latent_pipeline
from trainer.rundir import RunDir

KILLED = -9
UNET = {
    "block_out_channels": [8, 16], "down_block_types": ["DownBlock2D", "AttnDownBlock2D"],
    "up_block_types": ["AttnUpBlock2D", "UpBlock2D"], "layers_per_block": 1, "norm_num_groups": 4, "attention_head_dim": 4,
}  # fmt: skip


@pytest.fixture
def diffusers(trainers: Zygote) -> Zygote:
    """Trainers that have the library already."""
    trainers.preload("diffusers.models.unets.unet_2d", "diffusers.schedulers", "peft")
    return trainers


def file(folder: Path, *, dropout: float = 0.1, fidelity: dict[str, Any] | None = None, **sections: Any) -> Path:
    """A run file of a tiny UNet on digits."""
    path = run_file(folder)
    run = json.loads(path.read_text())
    run["data"] |= {"normalize": "auto", "augment": {"flip": 0.5}}
    run["model"] = {"source": "diffusers:UNet2DModel", "args": {**UNET, "dropout": dropout}, "adapt": run["model"]["adapt"]}
    run["task"] = {
        "kind": "diffusion",
        "draws": 2,
        "noise": {"steps": 50, "betas": "cosine"},
        "samples": {"steps": 4, "count": 10, "batch": 3},
    }
    run["train"] |= {"steps": 16, "micro_batch": 5}
    run["evaluate"] = {"every": "6 steps", "batch": 32}
    run["checkpoint"] = {"every": "4 steps", "keep": 2}
    for name, value in sections.items():
        run[name] = {**({} if name in ("strategy", "optimizer") else run.get(name, {})), **value}
    if fidelity is not None:
        run["task"]["fidelity"] = fidelity
    path.write_text(json.dumps(run))
    return path


def sheets(folder: Path) -> dict[str, np.ndarray[Any, Any]]:
    return {path.name: np.array(Image.open(path)) for path in sorted((folder / "samples").glob("step-*.png"))}


def test_killed_and_started_again_it_ends_the_same(diffusers: Zygote, tmp_path: Path) -> None:
    """On two ranks; killed between two checkpoints and in the middle of an evaluation's interval."""
    whole, broken = tmp_path / "whole", tmp_path / "broken"
    assert diffusers.run(file(whole), whole, world=2) == [0, 0]
    for fault in ("step@6:1=kill", "step@11:0=kill"):
        assert KILLED in diffusers.run(file(broken), broken, world=2, fault=fault)
    assert diffusers.run(file(broken), broken, world=2) == [0, 0]
    same(broken / "run", whole / "run")
    one, other = sheets(broken / "run"), sheets(whole / "run")
    assert one.keys() == other.keys() == {f"step-{step:08d}.png" for step in (6, 12, 16)}
    assert all(np.array_equal(one[name], other[name]) for name in one)


def test_the_number_of_ranks_changes_neither_losses_nor_images(diffusers: Zygote, tmp_path: Path) -> None:
    """Nor how like the data they are, by the features of a network that is named."""
    save_file(small().state_dict(), tmp_path / "judge.safetensors")
    judge = {"source": f"python:{NETWORK}:small", "weights": str(tmp_path / "judge.safetensors")}
    features = {**judge, "adapt": {"in_channels": 1, "image_size": 8}}
    fidelity = {"samples": 21, "measure": ["fid", "kid", "precision_recall"], "features": features, "against": "train"}
    losses, images, likeness = [], [], []
    for world in (1, 2):
        folder = tmp_path / str(world)
        path = file(folder, dropout=0.0, train={"micro_batch": 24 if world == 1 else 7, "clip": None}, fidelity=fidelity)
        assert diffusers.run(path, folder, world=world) == [0] * world
        found = points(folder / "run")
        losses.append([p[key] for p in found for key in ("train/loss", "val/loss") if key in p])
        images.append(sheets(folder / "run"))
        names = ("val/fd_small", "val/kd_small", "val/precision_small", "val/recall_small")
        likeness.append([p[name] for p in found for name in names if name in p])
    assert len(losses[0]) == 19
    assert len(likeness[0]) == 12
    assert likeness[0] == pytest.approx(likeness[1], rel=0.02, abs=1e-3)
    assert losses[0] == pytest.approx(losses[1], abs=2e-5)
    for name, one in images[0].items():
        assert np.abs(one.astype(int) - images[1][name]).max() <= 1, "to the rounding of a step of 255"
    assert not np.array_equal(images[0]["step-00000006.png"], images[0]["step-00000016.png"])


def test_the_best_is_chosen_by_the_loss(diffusers: Zygote, tmp_path: Path) -> None:
    path = file(tmp_path, task={"condition": "none"}, evaluate={"every": "4 steps", "early_stop": {"patience": 9}})
    assert diffusers.run(path, tmp_path) == [0]
    folder = RunDir(tmp_path / "run")
    summary = folder.read_json(folder.summary)
    values = [p["val/loss"] for p in points(folder.path) if "val/loss" in p]
    assert summary["best"]["metric"] == "val/loss"
    assert summary["best"]["value"] == min(values)
    evaluation = folder.read_json(folder.samples / "evaluation.json")
    assert len(evaluation["loss_by_time"]) == 4
    assert evaluation["samples"] == 178


def test_latents_are_drawn_anew_and_resumed(diffusers: Zygote, tmp_path: Path) -> None:
    """A transformer on an autoencoder's latents: killed and started again the same; an autoencoder that changed is refused."""
    model = {"source": latent_pipeline(tmp_path / "pipe"), "args": {}, "adapt": {"in_channels": 1}}
    sections: dict[str, Any] = {"model": model, "task": {"vae": "pipeline", "noise": {}}}
    whole, broken = tmp_path / "whole", tmp_path / "broken"
    assert diffusers.run(file(whole, **sections), whole) == [0]
    assert diffusers.run(file(broken, **sections), broken, fault="step@9:0=kill") == [KILLED]
    weights = tmp_path / "pipe" / "vae" / "diffusion_pytorch_model.safetensors"
    before = weights.read_bytes()
    weights.write_bytes(before[:-4] + bytes(4))
    (rank,) = diffusers.start(file(broken, **sections), broken)
    assert rank.wait() == 3
    assert "task.vae has other weights now than in the last attempt" in rank.text()
    weights.write_bytes(before)
    assert diffusers.run(file(broken, **sections), broken) == [0]
    same(broken / "run", whole / "run")


def test_what_an_autoencoder_says_is_kept(diffusers: Zygote, tmp_path: Path) -> None:
    """Two copies of each flipped sample, through nearly two epochs: the losses are those without; resumed the same."""
    model = {"source": latent_pipeline(tmp_path / "pipe"), "args": {}, "adapt": {"in_channels": 1}}
    long: dict[str, Any] = {
        "model": model,
        "task": {"vae": "pipeline", "noise": {}},
        "train": {"steps": 28, "global_batch": 48, "clip": None},
    }
    cache = {"cache": {"kind": "features", "views": 2, "path": str(tmp_path / "kept")}}
    found = []
    for name, data, world in (("plain", {"cache": {"kind": "none"}}, 1), ("kept", cache, 2)):
        assert diffusers.run(file(tmp_path / name, **long, data=data), tmp_path / name, world=world) == [0] * world
        found.append([p[key] for p in points(tmp_path / name / "run") for key in ("train/loss", "val/loss") if key in p])
    assert len(found[0]) == 33
    assert found[0] == pytest.approx(found[1], abs=2e-5)
    broken = tmp_path / "broken"
    assert KILLED in diffusers.run(file(broken, **long, data=cache), broken, world=2, fault="step@21:0=kill")
    assert diffusers.run(file(broken, **long, data=cache), broken, world=2) == [0, 0]
    same(broken / "run", tmp_path / "kept" / "run")
    first, again = ((folder / "run" / "log" / "rank-00000.log").read_text() for folder in (tmp_path / "kept", broken))
    assert "1,446 samples in" in first
    assert "1,446 samples in" not in again, "nothing is encoded again"


def test_buckets_of_aspects(diffusers: Zygote, tmp_path: Path) -> None:
    """Latents of pictures of two aspects: killed and started again on two ranks the same, and on one rank the same losses."""
    draw = np.random.default_rng(0)
    (tmp_path / "photos").mkdir()
    for number in range(30):
        sides = (10, 30) if number % 5 == 0 else (12, 14)
        Image.fromarray(draw.integers(0, 256, sides, dtype=np.uint8)).save(tmp_path / "photos" / f"{number:02d}.png")
    latent_pipeline(tmp_path / "pipe")
    sections: dict[str, Any] = {
        "data": {"train": f"folder:{tmp_path / 'photos'}", "val": "split:0.3", "buckets": {"step": 4, "max_ratio": 4}},
        "task": {"condition": "none", "vae": f"diffusers:{tmp_path / 'pipe'}#vae", "noise": {}},
        "train": {"steps": 12, "global_batch": 6, "micro_batch": 2, "clip": None},
        "model": {"adapt": {"in_channels": 1, "image_size": 8}},
    }

    def made(name: str) -> Path:
        path = file(tmp_path / name, dropout=0.0)
        run = json.loads(path.read_text())
        for section, values in sections.items():
            run[section] |= values
        path.write_text(json.dumps(run))
        return path

    whole, broken, alone = (tmp_path / name for name in ("whole", "broken", "alone"))
    assert diffusers.run(made("whole"), whole, world=2) == [0, 0]
    log = (whole / "run" / "log" / "attempt-001-rank-00000.log").read_text()
    assert "buckets: 16 of 8 x 8, 5 of 16 x 4" in log
    assert "fewer images than the 6 of a step in 16 x 4 (5)" in log
    assert KILLED in diffusers.run(made("broken"), broken, world=2, fault="step@7:1=kill")
    assert diffusers.run(made("broken"), broken, world=2) == [0, 0]
    same(broken / "run", whole / "run")
    assert diffusers.run(made("alone"), alone) == [0]
    losses = [
        [p[key] for p in points(folder / "run") for key in ("train/loss", "val/loss") if key in p] for folder in (alone, whole)
    ]
    assert len(losses[0]) == 14
    assert losses[0] == pytest.approx(losses[1], abs=2e-5)
