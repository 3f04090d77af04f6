"""A generator that was really trained: sampled, exported, and grafted to other classes."""

from __future__ import annotations

import csv
import json
from pathlib import Path
from typing import Any

import diffusers
import numpy as np
import pytest
import torch
from PIL import Image

from tests.faults.test_diffusion import file
from tests.trainers import Zygote, points
from trainer import sheet
from trainer.commands import main
from trainer.config.adapt import Adapt
from trainer.config.run import Model
from trainer.config.sources import open_source
from trainer.data.dataset import ImageDataset
from trainer.measuring import measure
from trainer.models import build_model
from trainer.restored import restore
from trainer.rundir import RunDir
from trainer.spec import Generator
from trainer.tasks.diffusion import Diffusion

STEPS = 200


def train(zygote: Zygote, folder: Path, **sections: Any) -> RunDir:
    zygote.preload("diffusers.models.unets.unet_2d", "diffusers.schedulers", "peft")
    often = {"every": f"{STEPS} steps"}
    settings = {
        "train": {"steps": STEPS, "global_batch": 64, "micro_batch": "auto", "ema": 0.9},
        "evaluate": often,
        "checkpoint": often,
        **sections,
    }
    (rank,) = zygote.start(file(folder, **settings), folder)
    assert rank.wait() == 0, rank.text()
    return RunDir(folder / "run")


@pytest.fixture(scope="module")
def run(zygote: Zygote, tmp_path_factory: pytest.TempPathFactory) -> RunDir:
    return train(zygote, tmp_path_factory.mktemp("generator"), optimizer={"kind": "adamw", "lr": 5e-3})


def pixels(folder: Path) -> dict[str, np.ndarray[Any, Any]]:
    return {path.name: np.array(Image.open(path)) for path in sorted(folder.glob("*.png"))}


def test_images_of_seeds_and_classes(run: RunDir, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    ask = ["sample", str(run.path), "--device", "cpu", "--checkpoint", "last"]
    assert main([*ask, "--seeds", "0-9", "--batch", "3", "--out", str(tmp_path / "all"), "--json"]) == 0
    told = json.loads(capsys.readouterr().out)
    assert told == {"folder": str(tmp_path / "all"), "step": STEPS, "images": 50}
    found = pixels(tmp_path / "all")
    assert list(found)[:2] == ["0-000000.png", "0-000001.png"]
    with (tmp_path / "all" / "samples.csv").open() as rows:
        assert list(csv.DictReader(rows))[6] == {"file": "1-000001.png", "class": "1", "seed": "1"}
    shown = sheet.read(run.samples / "step-00000200.png")
    assert shown is not None
    image, layout = shown
    for place, word in enumerate(layout.captions):
        x, y = place % layout.columns * (layout.width + sheet.GAP), place // layout.columns * (layout.height + sheet.GAP)
        tile = np.array(image)[y : y + 8, x : x + 8, 0].astype(int)
        assert np.abs(tile - found[f"{word}-{place:06d}.png"]).max() <= 1, "the seeds of the evaluation's sheet"

    assert main([*ask, "--seeds", "9,2", "--classes", "3,1", "--out", str(tmp_path / "some")]) == 0
    some = pixels(tmp_path / "some")
    assert list(some) == ["1-000002.png", "1-000009.png", "3-000002.png", "3-000009.png"]
    assert all(np.abs(image.astype(int) - found[name]).max() <= 1 for name, image in some.items())
    assert "4 images of step 200 are in" in capsys.readouterr().out
    strong = [*ask, "--seeds", "2", "--classes", "3", "--guidance", "8", "--steps", "9", "--sampler", "ddpm"]
    assert main([*strong, "--out", str(tmp_path / "strong")]) == 0
    assert not np.array_equal(pixels(tmp_path / "strong")["3-000002.png"], found["3-000002.png"])


def test_processes_share_the_work(run: RunDir, tmp_path: Path) -> None:
    ask = ["sample", str(run.path), "--device", "cpu", "--seeds", "0-6", "--batch", "4"]
    assert main([*ask, "--out", str(tmp_path / "one")]) == 0
    assert main([*ask, "--out", str(tmp_path / "two"), "--processes", "2"]) == 0
    one, two = pixels(tmp_path / "one"), pixels(tmp_path / "two")
    assert one.keys() == two.keys()
    assert all(np.array_equal(one[name], two[name]) for name in one), "to the bit: the batches are the same"


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--classes", "7"], "there is no class '7'; known: 0, 1, 2, 3, 4"),
        (["--seeds", "4-1"], "'4-1' is no seed nor a range"),
        (["--seeds", "1,1"], "names a seed twice"),
        (["--steps", "51"], "--steps is 51, and the noise has 50 time steps"),
        (["--guidance", "-1"], "--guidance must be at least 0"),
        (["--batch", "0"], "--batch must be at least 1"),
        (["--out", str(Path(__file__))], "is a file; name a folder"),
    ],
)
def test_what_cannot_be_made(
    run: RunDir, tmp_path: Path, capsys: pytest.CaptureFixture[str], words: list[str], message: str
) -> None:
    out = [] if "--out" in words else ["--out", str(tmp_path / "new")]
    assert main(["sample", str(run.path), "--device", "cpu", *words, *out]) == 2
    assert message in capsys.readouterr().err
    assert not (tmp_path / "new").exists()


def test_nothing_is_overwritten(run: RunDir, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    ask = ["sample", str(run.path), "--device", "cpu", "--classes", "1", "--out", str(tmp_path)]
    assert main([*ask, "--seeds", "0-1"]) == 0
    before = (tmp_path / "1-000001.png").read_bytes()
    assert main([*ask, "--seeds", "1-2", "--guidance", "5"]) == 2
    assert "has 1 of these images already, 1-000001.png for one" in capsys.readouterr().err
    assert (tmp_path / "1-000001.png").read_bytes() == before
    assert main([*ask, "--seeds", "2"]) == 0
    assert len((tmp_path / "samples.csv").read_text().splitlines()) == 4


def test_other_commands_say_what_to_write(run: RunDir, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["predict", str(run.path), str(tmp_path / "x.png")]) == 2
    assert "makes images and says nothing of any; write `graft sample run`" in capsys.readouterr().err
    assert main(["evaluate", str(run.path), "--device", "cpu", "--json"]) == 0
    told = json.loads(capsys.readouterr().out)
    assert told["samples"] == 178
    assert told["metrics"]["loss"] == pytest.approx(run.read_json(run.summary)["best"]["value"], abs=1e-5)


def loss(run: RunDir, data: str, turn: int = 0) -> float:
    """The loss over some digits; `turn`: each is told to be the one so many places further among the last three classes."""
    restored = restore(run, "last")
    task = restored.task
    assert isinstance(task, Diffusion)
    listing = open_source(data, [known.target for known in restored.facts.targets])
    dataset = ImageDataset(listing, restored.run.data, restored.spec, train=False, seed=0)
    batch = dataset.fetch([(0, index) for index in range(len(dataset))]).to(torch.device("cpu"), restored.spec)
    batch.labels = (batch.labels - 2 + turn) % 3 + 2 if turn else batch.labels
    with torch.no_grad():
        return float(torch.stack([task.error(said).mean() for said in task.measured(restored.network, batch)]).mean())


def test_an_exported_pipeline_makes_the_same_images_in_plain_diffusers(
    run: RunDir, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr("diffusers.utils.dynamic_modules_utils.HF_MODULES_CACHE", str(tmp_path / "cache"))
    out = tmp_path / "export"
    assert main(["export", str(run.path), "--device", "cpu", "--out", str(out)]) == 0
    pipe: Any = diffusers.DiffusionPipeline.from_pretrained(out, trust_remote_code=True)
    pipe.set_progress_bar_config(disable=True)
    asked = {"class_labels": ["3", "1"], "guidance_scale": 2.0, "num_inference_steps": 6}
    images = pipe(**asked, generator=[torch.Generator().manual_seed(seed) for seed in (7, 7)]).images
    ask = ["sample", str(run.path), "--device", "cpu", "--seeds", "7", "--classes", "3,1", "--steps", "6", "--guidance", "2"]
    assert main([*ask, "--out", str(tmp_path / "own")]) == 0
    own = pixels(tmp_path / "own")
    for image, name in zip(images, ("3-000007.png", "1-000007.png"), strict=True):
        assert np.abs(np.array(image).astype(int) - own[name]).max() <= 1
    card = (out / "README.md").read_text()
    assert "![images of fixed seeds](samples.png)" in card
    assert "of one of 5 classes: 0, 1, 2, 3, 4" in card
    assert sheet.read(out / "samples.png") is not None
    assert main(["export", str(run.path), "--device", "cpu", "--out", str(out)]) == 0, "an export is replaced"
    (tmp_path / "other").mkdir()
    (tmp_path / "other" / "keep.txt").write_text("mine")
    assert main(["export", str(run.path), "--device", "cpu", "--out", str(tmp_path / "other")]) == 2
    assert "is there and is no export" in capsys.readouterr().err

    built = build_model(
        Model(source=f"diffusers:{out}", adapt=Adapt(in_channels=1)), "auto", Generator(("4", "9"), dropped=True), 0
    )
    assert "1 of 2 classes kept" in "".join(built.report.adapted), "the export names its classes"


def test_new_classes_are_learnt_and_old_ones_survive(run: RunDir, zygote: Zygote, tmp_path: Path) -> None:
    """Of a run that knows 0 to 4 only the class table and the output learn 3 to 7: 3 and 4 are made as well as before."""
    data = {"train": "digits:3-7/train", "val": "digits:3-7/val"}
    model = {"source": f"run:{run.path}", "args": {}, "adapt": {"in_channels": 1}}
    learn = {"strategy": {"kind": "head"}, "optimizer": {"kind": "adamw", "lr": 0.02}, "data": data, "model": model}
    graft = train(zygote, tmp_path, **learn, evaluate={"every": f"{STEPS} steps", "at_start": True})
    begun, ended = (p["val/loss"] for p in points(graft.path) if "val/loss" in p)
    assert ended < 0.97 * begun
    assert loss(graft, "digits:3-4/val") < 1.05 * loss(run, "digits:3-4/val")
    right = loss(graft, "digits:5-7/val")
    assert all(right < 0.99 * loss(graft, "digits:5-7/val", turn) for turn in (1, 2)), "each new row is of its own class"


def test_a_prior_keeps_old_classes(run: RunDir, zygote: Zygote, tmp_path: Path) -> None:
    """Of a run that knows 0 to 4 all learns 5 to 9: with images of 0 and 1 beside these, they are not forgotten."""
    task = {"prior": {"classes": ["0", "1"], "data": "digits:0-1/train"}, "samples": {"steps": 4, "count": 0, "batch": 8}}
    old, new = [], []
    for weight in (0.0, 1.0):
        graft = train(
            zygote, tmp_path / str(weight), model={"source": f"run:{run.path}", "args": {}, "adapt": {"in_channels": 1}},
            data={"train": "digits:5-9/train", "val": "digits:5-9/val"}, optimizer={"kind": "adamw", "lr": 5e-3}, task=task,
            losses={"weights": {"prior": weight}}, train={"steps": 60, "global_batch": 32, "micro_batch": "auto", "ema": None},
        )  # fmt: skip
        restored = restore(graft, "last")
        old.append(measure(restored, "digits:0-1/val", torch.device("cpu"))[0].metrics["loss"])
        new.append(points(graft.path)[-1]["val/loss"])
    assert old[1] < 0.9 * old[0], "0.206 and 0.250; before the training 0.221"
    assert new[1] < 1.05 * new[0], "and the new ones are learnt as well"
