"""The task cycle: two networks and two critics, killed and started again; both ways, by graft and by its export alone."""

from __future__ import annotations

import json
import runpy
import shutil
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
import yaml
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
from trainer.spec import Cyclic, Translator

KILLED = -9
OWN = Path(painter.__file__)


def file(folder: Path, pictures: Path) -> Path:
    """A run file: networks that begin with the input, unequal classes, BatchNorm and dropout, two micro-batches a step of each
    rank, an average."""
    path = run_file(folder)
    run = json.loads(path.read_text())
    run["model"] = {"source": f"python:{OWN}:trunk", "args": {"width": 4}, "adapt": {"image_size": 8}}
    run["task"] = {
        "kind": "cycle", "losses": ["adversarial", "cycle", "identity"], "residual": True,
        "decoder": {"width": 8}, "adversary": {"width": 8, "layers": 1}, "samples": {"count": 4},
        "fidelity": {"measure": ["fid"], "features": {**run["model"], "weights": str(pictures / "features.safetensors")}},
    }  # fmt: skip
    run["data"] = {
        "train": f"folder:{pictures / 'train'}", "val": f"folder:{pictures / 'val'}", "classes": ["warm", "cold"], "workers": 0,
        "augment": {"flip": 0.5},
    }  # fmt: skip
    run["train"] |= {"steps": 8, "global_batch": 12, "micro_batch": 3}
    run["evaluate"] = {"every": "4 steps", "batch": 3}
    run["checkpoint"] = {"every": "3 steps", "keep": 2}
    path.write_text(json.dumps(run))
    return path


@pytest.fixture(scope="module")
def pictures(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("pictures")
    for number, (name, count) in enumerate({"train/warm": 11, "train/cold": 7, "val/warm": 5, "val/cold": 4}.items()):
        painter.photographs(folder / name, count, number, size=8)
    torch.manual_seed(0)
    save_file(painter.trunk(4).state_dict(), folder / "features.safetensors")
    return folder


@pytest.fixture(scope="module")
def whole(zygote: Zygote, pictures: Path, tmp_path_factory: pytest.TempPathFactory) -> RunDir:
    folder = tmp_path_factory.mktemp("whole")
    assert zygote.run(file(folder, pictures), folder, world=2) == [0, 0]
    return RunDir(folder / "run")


def test_killed_and_started_again_it_ends_the_same(trainers: Zygote, whole: RunDir, pictures: Path, tmp_path: Path) -> None:
    """All four networks and both optimizers, on two ranks; killed between two checkpoints."""
    assert KILLED in trainers.run(file(tmp_path, pictures), tmp_path, world=2, fault="step@5:1=kill")
    assert trainers.run(file(tmp_path, pictures), tmp_path, world=2) == [0, 0]
    same(tmp_path / "run", whole.path)
    newest = whole.checkpoints / "step-00000008"
    names = {name.partition(".")[0] for name in load_file(newest / "model.safetensors")}
    assert names == {"forth", "back"}
    assert {name.partition(".")[0] for name in load_file(newest / "critic.safetensors")} == {"0", "1"}
    assert (newest / "critic-optimizer.safetensors").is_file()
    one, other = (np.array(Image.open(folder / "samples" / "step-00000008.png")) for folder in (tmp_path / "run", whole.path))
    assert np.array_equal(one, other)


def test_each_picture_is_measured_once_on_any_number_of_ranks(
    whole: RunDir, pictures: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Measured again by one process, in other batches; the report shows it."""
    *_, last = (p for p in points(whole.path) if "val/cycle_psnr" in p)
    begun, *_, ended = (p["train/loss"] for p in points(whole.path) if "train/loss" in p)
    assert ended < begun
    first = next(p for p in points(whole.path) if "loss/cycle" in p)
    assert first["loss/cycle"] < 1e-6, "each network begins with its input, by which nothing is better"
    best = min((p for p in points(whole.path) if "val/loss" in p), key=lambda p: p["val/fd_trunk_forth"])
    assert json.loads((whole.checkpoints / "index.json").read_text())["best"] == f"step-{best['step']:08d}"
    assert main(["evaluate", str(whole.path), "--device", "cpu", "--checkpoint", "last", "--json"]) == 0
    told = json.loads(capsys.readouterr().out)
    assert {name: way["samples"] for name, way in told["ways"].items()} == {"warm": 5, "cold": 4}
    for name, value in told["metrics"].items():
        assert last[f"val/{name}"] == pytest.approx(value, abs=1e-5), name
    assert told["metrics"]["loss"] == pytest.approx(10 * told["losses"]["cycle"] + 5 * told["losses"]["identity"])
    shown = sheet.read(whole.samples / "step-00000008.png")
    assert shown is not None
    image, layout = shown
    assert layout.captions == ("input", "output", "back") * 4
    for row, name in ((0, "cold/000.png"), (2, "warm/000.png")):  # the first and the fifth of nine
        shown_first = np.array(image)[10 * row : 10 * row + 8, :8]
        assert np.array_equal(shown_first, np.array(Image.open(pictures / "val" / name)))
    assert main(["report", str(whole.path)]) == 0
    assert "How near themselves again" in whole.report.read_text()


def test_both_ways_by_graft_and_by_the_export_alone(
    whole: RunDir, pictures: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    out = tmp_path / "export"
    assert main(["export", str(whole.path), "--device", "cpu", "--out", str(out)]) == 0
    card = (out / "README.md").read_text()
    assert "`forth/` makes cold of warm, `back/` warm of cold" in card
    assert r"fd\_trunk\_forth" in card
    assert "was not measured" not in card
    for name, of in (("forth", "warm"), ("back", "cold")):
        more = ["--back"] * (name == "back")
        ask = ["translate", str(whole.path), str(pictures / "val" / of), *more, "--device", "cpu", "--out", str(tmp_path / name)]
        assert main(ask) == 0
    program = out / "back" / "translate.py"
    monkeypatch.setattr(sys, "argv", [str(program), str(tmp_path / "plain"), str(pictures / "val/cold/002.png")])
    with pytest.raises(SystemExit) as ended:
        runpy.run_path(str(program), run_name="__main__")
    assert ended.value.code == 0
    one, other, forth = (np.array(Image.open(tmp_path / name / "002.png")).astype(int) for name in ("plain", "back", "forth"))
    assert np.abs(one - other).max() <= 1
    assert np.abs(one - forth).max() > 1
    capsys.readouterr()
    for wrong, message in (("--derive", "run learnt without pairs; leave it out"), ("--checkpoint=7", "7")):
        assert main(["translate", str(whole.path), str(pictures / "val"), wrong, "--out", str(tmp_path / "no")]) != 0
        assert message in capsys.readouterr().err


def test_a_run_goes_on_with_both_networks(whole: RunDir, tmp_path: Path) -> None:
    model = Model.model_validate({"source": f"run:{whole.path}", "weights": "last", "adapt": {"image_size": 8}})
    built = build_model(model, "auto", Cyclic(Translator(3, 16)), 5)
    kept = load_file(whole.checkpoints / "step-00000008" / "model-average.safetensors")
    assert all(torch.equal(value, kept[name]) for name, value in built.network.state_dict().items())
    assert built.head == ("forth.network.network.decoder", "back.network.network.decoder")
    with pytest.raises(UserError, match=r"has two networks, one for each way; write task: {kind: cycle}"):
        build_model(model, "auto", Translator(3, 8), 0)
    with pytest.raises(UserError, match=r"write model\.adapt\.in_channels: 3 and task.channels: 3"):
        build_model(model, "auto", Cyclic(Translator(1, 8)), 0)

    went_on = RunDir(shutil.copytree(whole.path, tmp_path / "on"))  # the same networks, as a run that took them as they were
    told = yaml.safe_load((went_on.path / "run.yaml").read_text())
    told["model"] |= {"source": f"run:{whole.path}", "args": {}, "weights": "last"}
    told["task"]["residual"] = "auto"
    (went_on.path / "run.yaml").write_text(json.dumps(told))
    model = model.model_copy(update={"source": f"run:{went_on.path}"})
    assert build_model(model, "auto", Cyclic(Translator(3, 8, residual=True)), 0).head == built.head
    with pytest.raises(UserError, match=r"task\.residual is false, and run:on has networks that add their output to their input"):
        build_model(model, "auto", Cyclic(Translator(3, 8, residual=False)), 0)
