"""The task translate: killed, started again, the same end; pictures of pictures, by graft and by its export alone."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import load_file, save_file

from tests import painter
from tests.trainers import Zygote, points, run_file, same
from trainer import sheet
from trainer.commands import main
from trainer.config import UserError
from trainer.config.model import Model
from trainer.models import build_model
from trainer.rundir import RunDir
from trainer.spec import Translator

KILLED = -9
OWN = Path(painter.__file__)


@pytest.fixture(scope="module")
def photographs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("photographs")
    painter.photographs(folder / "train", 40, 0)
    painter.photographs(folder / "val", 13, 1)
    torch.manual_seed(0)
    save_file(painter.trunk(6).state_dict(), folder / "features.safetensors")
    return folder


def file(folder: Path, photographs: Path, **sections: Any) -> Path:
    """A run file: holes are filled by a trunk with a decoder, by pixels, features and a critic, balanced as it goes."""
    path = run_file(folder)
    run = json.loads(path.read_text())
    features = {"source": f"python:{OWN}:trunk", "args": {"width": 6}, "weights": str(photographs / "features.safetensors")}
    run["model"] = {"source": f"python:{OWN}:trunk", "adapt": {"image_size": 16}}
    run["task"] = {
        "kind": "translate", "pairs": "masked", "losses": ["l1", "perceptual", "adversarial"], "decoder": {"width": 8},
        "samples": {"count": 4}, "adversary": {"width": 8, "layers": 2},
        "perceptual": {"features": {**features, "adapt": {"image_size": 16}}},
    }  # fmt: skip
    run["losses"] = {"balance": {"kind": "match"}}
    run["data"] = {
        "train": f"folder:{photographs / 'train'}", "val": f"folder:{photographs / 'val'}", "workers": 0,
        "augment": {"flip": 0.5},
    }  # fmt: skip
    run["train"] |= {"steps": 16, "global_batch": 12, "micro_batch": 4}
    run["evaluate"] = {"every": "6 steps", "batch": 4}
    run["checkpoint"] = {"every": "4 steps", "keep": 2}
    run |= sections
    path.write_text(json.dumps(run))
    return path


@pytest.fixture(scope="module")
def whole(zygote: Zygote, photographs: Path, tmp_path_factory: pytest.TempPathFactory) -> RunDir:
    folder = tmp_path_factory.mktemp("whole")
    assert zygote.run(file(folder, photographs), folder, world=2) == [0, 0]
    return RunDir(folder / "run")


def test_killed_and_started_again_it_ends_the_same(trainers: Zygote, whole: RunDir, photographs: Path, tmp_path: Path) -> None:
    """Both networks and both optimizers, on two ranks; killed between two checkpoints, and other features are refused."""
    assert KILLED in trainers.run(file(tmp_path, photographs), tmp_path, world=2, fault="step@6:1=kill")
    weights = photographs / "features.safetensors"
    before = weights.read_bytes()
    save_file(painter.trunk(6).state_dict(), weights)
    (rank,) = trainers.start(file(tmp_path, photographs), tmp_path)
    assert rank.wait() == 3
    assert "task.perceptual.features has other weights now than in the last attempt" in rank.text()
    weights.write_bytes(before)
    assert trainers.run(file(tmp_path, photographs), tmp_path, world=2) == [0, 0]
    same(tmp_path / "run", whole.path)
    files = {path.name for path in (whole.checkpoints / "step-00000016").iterdir()}
    assert {"critic.safetensors", "critic-optimizer.safetensors", "model.safetensors", "model-optimizer.safetensors"} <= files
    for name in ("step-00000006.png", "step-00000016.png"):
        one, other = (np.array(Image.open(folder / "samples" / name)) for folder in (tmp_path / "run", whole.path))
        assert np.array_equal(one, other)


def test_figures_are_over_every_pair_on_any_number_of_ranks(
    whole: RunDir, capsys: pytest.CaptureFixture[str], photographs: Path
) -> None:
    """Measured again by one process, in other batches; the report shows them and the pictures."""
    last = [p for p in points(whole.path) if "val/psnr" in p][-1]
    assert main(["evaluate", str(whole.path), "--device", "cpu", "--checkpoint", "last", "--json"]) == 0
    told = json.loads(capsys.readouterr().out)
    assert told["samples"] == 13
    for name, value in told["metrics"].items():
        assert last[f"val/{name}"] == pytest.approx(value, abs=1e-5), name
    assert told["input"]["psnr"] > 5
    assert last["val/psnr"] > told["input"]["psnr"], "what begins with the input itself, without a residual far below it"
    shown = sheet.read(whole.samples / "step-00000016.png")
    assert shown is not None
    image, layout = shown
    assert layout.captions == ("input", "output", "target") * 4
    target = np.array(image)[:16, 2 * 18 : 2 * 18 + 16]
    assert np.array_equal(target, np.array(Image.open(photographs / "val" / "000.png")))
    assert main(["report", str(whole.path)]) == 0
    page = whole.report.read_text()
    assert "the same validation pairs; columns: input, output, target" in page
    assert "input itself" in page
    assert main(["predict", str(whole.path), str(photographs / "val")]) == 2
    assert "write `graft translate run`" in capsys.readouterr().err


def test_pictures_are_made_by_graft_and_by_the_export_alone(
    whole: RunDir, photographs: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    ask = ["translate", str(whole.path), str(photographs / "val"), "--device", "cpu", "--batch", "5"]
    assert main([*ask, "--out", str(tmp_path / "one"), "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["pictures"] == 13
    assert main([*ask, "--out", str(tmp_path / "one")]) == 2
    assert "has 13 of these images already, 000.png for one" in capsys.readouterr().err
    (tmp_path / "in").mkdir()
    (tmp_path / "in" / "bad.png").write_bytes(b"none")
    Image.open(photographs / "val" / "003.png").save(tmp_path / "in" / "good.bmp")
    assert main(["translate", str(whole.path), str(tmp_path / "in"), "--device", "cpu", "--out", str(tmp_path / "some")]) == 1
    assert [path.name for path in (tmp_path / "some").iterdir()] == ["good.png"]
    assert "bad.png: not an image" in capsys.readouterr().err

    out = tmp_path / "export"
    assert main(["export", str(whole.path), "--device", "cpu", "--out", str(out)]) == 0
    card = (out / "README.md").read_text()
    assert "| psnr |" in card
    assert "The input itself, taken for the output: PSNR" in card
    program = [sys.executable, str(out / "translate.py"), str(tmp_path / "plain"), str(photographs / "val" / "003.png")]
    subprocess.run(program, check=True, cwd=tmp_path, capture_output=True)
    one, other = (np.array(Image.open(place / "003.png")).astype(int) for place in (tmp_path / "plain", tmp_path / "one"))
    assert np.abs(one - other).max() <= 1


def test_processes_share_the_pictures(
    whole: RunDir, photographs: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """To the bit, with holes that belong to the place of a picture, whoever makes it and whatever cannot be read before it."""
    folder = tmp_path / "in"
    shutil.copytree(photographs / "val", folder)
    (folder / "001.png").write_bytes(b"none")
    ask = ["translate", str(whole.path), str(folder), "--device", "cpu", "--batch", "4", "--derive", "--json"]
    found = []
    for name, more in (("one", []), ("two", ["--processes", "2"])):
        assert main([*ask, *more, "--out", str(tmp_path / name)]) == 1
        assert json.loads(capsys.readouterr().out)["failed"] == [str(folder / "001.png")]
        found.append({path.name: path.read_bytes() for path in (tmp_path / name).iterdir()})
    assert found[0] == found[1]
    shutil.copy(photographs / "val" / "001.png", folder)
    assert main([*ask, "--out", str(tmp_path / "whole")]) == 0
    assert len(found[0]) == 12
    for name in found[0]:
        one, other = (np.array(Image.open(tmp_path / out / name)).astype(int) for out in ("one", "whole"))
        assert np.abs(one - other).max() <= 1, "to the rounding of another batch"


def test_a_run_goes_on_as_another_one(whole: RunDir, trainers: Zygote, photographs: Path, tmp_path: Path) -> None:
    """Its network, with what it learnt, for other pairs; and a loss alone needs no balance."""
    task = {"kind": "translate", "pairs": "grey", "losses": ["mse"]}
    model = {"source": f"run:{whole.path}", "adapt": {"image_size": 16}}
    more = {"evaluate": {"every": "4 steps", "at_start": True}, "losses": {}, "strategy": {"kind": "head"}}
    path = file(tmp_path, photographs, task=task, model=model, **more)
    assert trainers.run(path, tmp_path) == [0]
    begun, *_, ended = [p["val/psnr"] for p in points(tmp_path / "run") if "val/psnr" in p]
    assert ended > begun
    newest = max(RunDir(tmp_path / "run").checkpoints.glob("step-*"))
    assert "network.decoder.out.weight" in load_file(newest / "model.safetensors")
    with pytest.raises(UserError, match="run:run has a network that adds its output to its input; leave residual out"):
        build_model(Model.model_validate(model), "auto", Translator(3, 8, residual=False), 0)
