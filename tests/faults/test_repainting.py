"""A diffusion model that is given a picture: killed and resumed the same; its pictures by graft and by plain diffusers."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import diffusers
import numpy as np
import pytest
import torch
from PIL import Image
from torchvision import models

from tests import painter
from tests.trainers import Zygote, points, run_file, same
from trainer import sheet
from trainer.commands import main
from trainer.rundir import RunDir

KILLED = -9
SIZE = 20
UNET: dict[str, Any] = {
    "block_out_channels": [8, 16], "down_block_types": ["DownBlock2D", "AttnDownBlock2D"],
    "up_block_types": ["AttnUpBlock2D", "UpBlock2D"], "layers_per_block": 1, "norm_num_groups": 4, "attention_head_dim": 4,
}  # fmt: skip
SQUEEZE = models.SqueezeNet1_1_Weights.DEFAULT.url


@pytest.fixture(scope="module")
def photographs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Pictures, a pipeline that makes such of noise, and weights of random values in place of the published ones for LPIPS."""
    folder = tmp_path_factory.mktemp("photographs")
    painter.photographs(folder / "train", 40, 0, SIZE)
    painter.photographs(folder / "val", 13, 1, SIZE)
    torch.manual_seed(0)
    network = diffusers.UNet2DModel(sample_size=SIZE, dropout=0.1, **UNET)
    plain: Any = diffusers.DDPMPipeline
    plain(network, diffusers.DDPMScheduler(num_train_timesteps=50)).save_pretrained(folder / "pipeline")
    (folder / "hub" / "checkpoints").mkdir(parents=True)
    torch.save(models.squeezenet1_1().state_dict(), folder / "hub" / "checkpoints" / Path(SQUEEZE).name)
    return folder


def file(folder: Path, photographs: Path, **sections: Any) -> Path:
    """A run file: holes are filled by a pretrained UNet."""
    path = run_file(folder)
    run = json.loads(path.read_text())
    run["model"] = {"source": f"diffusers:{photographs / 'pipeline'}", "adapt": {"image_size": SIZE}}
    run["task"] = {
        "kind": "diffusion", "condition": "none", "pairs": "masked", "lpips": "squeeze", "draws": 2,
        "samples": {"steps": 3, "count": 5, "batch": 2, "seed": 7},
    }  # fmt: skip
    run["data"] = {
        "train": f"folder:{photographs / 'train'}", "val": f"folder:{photographs / 'val'}", "workers": 0,
        "augment": {"flip": 0.5},
    }  # fmt: skip
    run["train"] |= {"steps": 12, "global_batch": 12, "micro_batch": 4}
    run["evaluate"] = {"every": "6 steps", "batch": 4}
    run["checkpoint"] = {"every": "4 steps", "keep": 2}
    run |= sections
    path.write_text(json.dumps(run))
    return path


@pytest.fixture(scope="module")
def whole(zygote: Zygote, photographs: Path, tmp_path_factory: pytest.TempPathFactory) -> RunDir:
    folder = tmp_path_factory.mktemp("whole")
    zygote.preload("diffusers.models.unets.unet_2d", "diffusers.schedulers")
    path = file(folder, photographs)
    assert zygote.run(path, folder, world=2, env={"TORCH_HOME": str(photographs)}) == [0, 0]
    return RunDir(folder / "run")


def test_killed_and_started_again_it_ends_the_same(trainers: Zygote, whole: RunDir, photographs: Path, tmp_path: Path) -> None:
    """On two ranks, killed between two checkpoints; without the weights of LPIPS nothing starts."""
    path = file(tmp_path, photographs)
    (rank,) = trainers.start(path, tmp_path, env={"TORCH_HOME": str(tmp_path)})
    assert rank.wait() == 2
    assert "task.lpips: the weights DEFAULT of torchvision:squeezenet1_1 are not here; run `graft fetch RUN`" in rank.text()
    home = {"TORCH_HOME": str(photographs)}
    assert KILLED in trainers.run(path, tmp_path, world=2, fault="step@6:1=kill", env=home)
    assert trainers.run(path, tmp_path, world=2, env=home) == [0, 0]
    same(tmp_path / "run", whole.path)
    for name in ("step-00000006.png", "step-00000012.png"):
        one, other = (np.array(Image.open(folder / "samples" / name)) for folder in (tmp_path / "run", whole.path))
        assert np.array_equal(one, other)


def test_figures_are_of_the_same_pairs_on_any_number_of_ranks(
    whole: RunDir, photographs: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Measured again by one process, in other batches; the report shows them and the pictures."""
    monkeypatch.setenv("TORCH_HOME", str(photographs))
    last = [p for p in points(whole.path) if "val/psnr" in p][-1]
    assert main(["evaluate", str(whole.path), "--device", "cpu", "--checkpoint", "last", "--json"]) == 0
    told = json.loads(capsys.readouterr().out)
    assert (told["samples"], told["translated"]) == (13, 5)
    assert set(told["metrics"]) == {"loss", "psnr", "ssim", "mae", "lpips_squeeze"}
    for name, value in told["metrics"].items():
        assert last[f"val/{name}"] == pytest.approx(value, abs=1e-5), name
    assert told["input"]["psnr"] > last["val/psnr"] > 3, "so few steps only spoil the picture"
    assert 0 < told["input"]["lpips_squeeze"] < last["val/lpips_squeeze"]
    assert main(["report", str(whole.path)]) == 0
    page = whole.report.read_text()
    assert "the same validation pairs; columns: input, output, target" in page
    assert "Means over 5 validation pairs" in page
    assert "LPIPS squeeze" in page
    for command, *more in (("predict", str(photographs / "val")), ("sample",)):
        assert main([command, str(whole.path), *more]) == 2
        assert "write `graft translate run" in capsys.readouterr().err


def test_pictures_are_made_by_graft_and_by_plain_diffusers(
    whole: RunDir, photographs: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """The same as in the evaluation, by one process and by the shares of two; the exported pipeline makes them as well."""
    monkeypatch.setenv("TORCH_HOME", str(photographs))
    monkeypatch.setattr("diffusers.utils.dynamic_modules_utils.HF_MODULES_CACHE", str(tmp_path / "cache"))
    ask = ["translate", str(whole.path), str(photographs / "val"), "--device", "cpu", "--batch", "2", "--derive",
           "--checkpoint", "last"]  # fmt: skip
    assert main([*ask, "--out", str(tmp_path / "one")]) == 0
    with monkeypatch.context() as env:  # as `--processes 2` starts them
        env.setenv("WORLD_SIZE", "2")
        for rank in ("1", "0"):
            env.setenv("RANK", rank)
            assert main([*ask, "--out", str(tmp_path / "two")]) == 0
    made = {path.name: np.array(Image.open(path)) for path in sorted((tmp_path / "one").iterdir())}
    assert len(made) == 13
    assert all(np.array_equal(image, np.array(Image.open(tmp_path / "two" / name))) for name, image in made.items())
    shown = sheet.read(whole.samples / "step-00000012.png")
    assert shown is not None
    row, wide = 2, SIZE + sheet.GAP
    assert shown[1].captions == ("input", "output", "target") * 5
    high = (shown[0].height - SIZE) // 4
    output, target = (np.array(shown[0])[row * high : row * high + SIZE, at : at + SIZE].astype(int) for at in (wide, 2 * wide))
    assert np.array_equal(target, np.array(Image.open(photographs / "val" / "005.png"))), "the third of five among thirteen"
    assert np.abs(output - made["005.png"]).max() <= 1
    assert main([*ask, "--out", str(tmp_path / "other"), "--seed", "8", "--steps", "4"]) == 0
    assert not np.array_equal(np.array(Image.open(tmp_path / "other" / "005.png")), made["005.png"])

    out = tmp_path / "export"
    assert main(["export", str(whole.path), "--device", "cpu", "--out", str(out), "--checkpoint", "last"]) == 0
    card = (out / "README.md").read_text()
    assert "| psnr |" in card
    assert "The figures of pictures are of 5 validation pairs. The input itself, taken for the output: PSNR" in card
    assert "![input, output, target](samples.png)" in card
    assert (out / "samples.png").read_bytes() == (whole.samples / "step-00000012.png").read_bytes()
    capsys.readouterr()
    assert main(["translate", str(whole.path), str(photographs / "val" / "003.png"), "--device", "cpu", "--checkpoint", "last",
                 "--out", str(tmp_path / "plain")]) == 0  # fmt: skip
    pipe: Any = diffusers.DiffusionPipeline.from_pretrained(out, trust_remote_code=True)
    pipe.set_progress_bar_config(disable=True)
    image = Image.open(photographs / "val" / "003.png")
    found = pipe(image, generator=torch.Generator().manual_seed(7), num_inference_steps=3).images[0]
    expected = np.array(Image.open(tmp_path / "plain" / "003.png")).astype(int)
    assert np.abs(np.array(found).astype(int) - expected).max() <= 1


def test_a_run_goes_on_as_another_one(whole: RunDir, trainers: Zygote, photographs: Path, tmp_path: Path) -> None:
    """With the channels of the source as they were learnt; for other pairs."""
    last = [p["val/loss"] for p in points(whole.path) if "val/loss" in p][-1]
    task = {"kind": "diffusion", "condition": "none", "pairs": "masked", "draws": 2, "samples": {"count": 0}}
    model = {"source": f"run:{whole.path}", "weights": "last", "adapt": {"image_size": SIZE}}
    more = {
        "evaluate": {"at_start": True}, "strategy": {"kind": "lora", "head": "keep"}, "train": {"steps": 1, "global_batch": 4},
    }  # fmt: skip
    path = file(tmp_path, photographs, task=task, model=model, **more)
    assert trainers.run(path, tmp_path) == [0]
    assert next(p["val/loss"] for p in points(tmp_path / "run") if "val/loss" in p) == pytest.approx(last, abs=1e-5)
