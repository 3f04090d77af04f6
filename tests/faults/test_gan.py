"""The task gan: killed, started again, the same end; on any number of ranks the same losses and images; used and exported."""

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

from tests.network import small
from tests.trainers import NETWORK, Zygote, points, run_file, same
from trainer.commands import main
from trainer.config.model import Model
from trainer.models import build_model
from trainer.models.resnet_gan import ResnetCritic, ResnetGenerator
from trainer.rundir import RunDir
from trainer.spec import Pair

KILLED = -9
NAMES = ("val/fd_small", "val/kd_small")


def begun(folder: Path) -> Path:
    """An export, as a run may begin with."""
    torch.manual_seed(0)
    folder.mkdir(exist_ok=True)
    save_file(ResnetGenerator(1, 8, 3, latent=8, width=8).state_dict(), folder / "generator.safetensors")
    save_file(ResnetCritic(1, 8, 3, width=8).state_dict(), folder / "critic.safetensors")
    said = {"task": "gan", "source": "gan:resnet", "args": {"latent": 8, "width": 8}, "classes": ["1", "2", "7"]}
    (folder / "config.json").write_text(json.dumps({**said, "in_channels": 1, "image_size": 8}))
    return folder


def file(folder: Path, judge: Path, **train: Any) -> Path:
    """A run file of all that a gan can do: a frozen block, a lazy penalty, changes that follow the critic."""
    path = run_file(folder)
    run = json.loads(path.read_text())
    features = {"source": f"python:{NETWORK}:small", "weights": str(judge), "adapt": {"in_channels": 1, "image_size": 8}}
    run["data"] |= {"normalize": "auto", "augment": {"flip": 0.5}}
    run["model"] = {"source": f"gan:{begun(folder / 'old')}", "adapt": {"in_channels": 1}}
    run["task"] = {
        "kind": "gan", "r1": {"weight": 0.5, "every": 3}, "critic": {"frozen": 1, "rate": 2.0},
        "augment": {"share": 0.5, "adaptive": {"every": 2, "images": 500}}, "samples": {"count": 10, "batch": 3},
        "fidelity": {"samples": 21, "features": features},
    }  # fmt: skip
    run["train"] |= {"steps": 12, "micro_batch": 7, "clip": None, **train}
    run["evaluate"] = {"every": "5 steps", "batch": 64}
    run["checkpoint"] = {"every": "4 steps", "keep": 2}
    path.write_text(json.dumps(run))
    return path


@pytest.fixture(scope="module")
def judge(tmp_path_factory: pytest.TempPathFactory) -> Path:
    place = tmp_path_factory.mktemp("judge") / "judge.safetensors"
    torch.manual_seed(0)
    save_file(small().state_dict(), place)
    return place


@pytest.fixture(scope="module")
def whole(zygote: Zygote, judge: Path, tmp_path_factory: pytest.TempPathFactory) -> RunDir:
    folder = tmp_path_factory.mktemp("whole")
    assert zygote.run(file(folder, judge), folder, world=2) == [0, 0]
    shutil.rmtree(folder / "old")  # nothing after the beginning needs it
    return RunDir(folder / "run")


def sheets(folder: Path) -> dict[str, np.ndarray[Any, Any]]:
    return {path.name: np.array(Image.open(path)).astype(int) for path in sorted((folder / "samples").glob("step-*.png"))}


def test_killed_and_started_again_it_ends_the_same(trainers: Zygote, whole: RunDir, judge: Path, tmp_path: Path) -> None:
    """Both networks, both optimizers and the share of changed images, on two ranks; killed between two checkpoints. The export
    that it began with is gone by then."""
    path = file(tmp_path, judge)
    assert KILLED in trainers.run(path, tmp_path, world=2, fault="step@7:1=kill")
    shutil.rmtree(tmp_path / "old")
    assert trainers.run(path, tmp_path, world=2) == [0, 0]
    same(tmp_path / "run", whole.path)
    one, other = sheets(tmp_path / "run"), sheets(whole.path)
    assert one.keys() == other.keys() == {f"step-{step:08d}.png" for step in (5, 10, 12)}
    assert all(np.array_equal(one[name], other[name]) for name in one)
    newest = whole.checkpoints / "step-00000012"
    assert {"critic.safetensors", "critic-optimizer.safetensors", "model-average.safetensors"} <= {
        f.name for f in newest.iterdir()
    }
    critic = load_file(newest / "critic.safetensors")
    assert 0 < float(critic["augment_share"]) < 1
    assert float(critic["augment_share"]) == pytest.approx(
        [p["critic/share"] for p in points(whole.path) if "critic/share" in p][-1]
    )
    before = load_file(min(whole.checkpoints.glob("step-*")) / "critic.safetensors")
    still = {name for name in critic if torch.equal(critic[name], before[name])}
    assert {name.partition(".")[0] for name in still} == {"from_image"}, "the first block alone stays as it is"


def test_the_number_of_ranks_changes_neither_losses_nor_images(
    trainers: Zygote, whole: RunDir, judge: Path, tmp_path: Path
) -> None:  # fmt: skip
    """Nor does working out the generator's blocks again."""
    assert trainers.run(file(tmp_path, judge, micro_batch=24, checkpointing=True), tmp_path) == [0]
    found = [points(folder) for folder in (tmp_path / "run", whole.path)]
    for name in ("train/loss", "loss/critic", "critic/real", "critic/made", "critic/share", *NAMES):
        one, other = ([p[name] for p in record if name in p] for record in found)
        assert len(one) == (3 if name in NAMES else 12), name
        assert one == pytest.approx(other, rel=1e-3, abs=1e-4), name
    for name, image in sheets(tmp_path / "run").items():
        assert np.abs(image - sheets(whole.path)[name]).max() <= 1, "to the rounding of a step of 255"


def test_images_are_made_by_graft_and_by_the_export_alone(
    whole: RunDir, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:  # fmt: skip
    """The export goes on as another run: both networks, with the rows of classes of the same names."""
    ask = ["sample", str(whole.path), "--seeds", "3,5", "--device", "cpu"]
    assert main([*ask, "--out", str(tmp_path / "one"), "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["images"] == 10
    assert main([*ask, "--out", str(tmp_path / "near"), "--truncation", "0.3"]) == 0
    out = tmp_path / "export"
    assert main(["export", str(whole.path), "--device", "cpu", "--out", str(out)]) == 0
    assert "| fd\\_small |" in (out / "README.md").read_text()
    program = [sys.executable, "-I", str(out / "sample.py"), str(tmp_path / "plain"), "3", "5"]
    subprocess.run(program, check=True, cwd=tmp_path, capture_output=True)
    names = {path.name for path in (tmp_path / "plain").iterdir()}
    assert names == {f"{digit}-{seed:06d}.png" for digit in range(5) for seed in (3, 5)}
    for name in names:
        one, other, near = (np.array(Image.open(tmp_path / place / name)).astype(int) for place in ("one", "plain", "near"))
        assert np.abs(one - other).max() <= 1, name
        assert np.abs(one - near).max() > 1, name
    model = Model.model_validate({"source": f"gan:{out}", "adapt": {"in_channels": 1}})
    again = build_model(model, "auto", Pair(("7", "3")), 0)
    assert again.critic is not None
    critic, old = load_file(out / "critic.safetensors"), load_file(out / "generator.safetensors")
    assert "augment_share" not in critic
    assert torch.equal(again.critic.get_parameter("class_embedding.weight")[1], critic["class_embedding.weight"][3])
    assert torch.equal(again.network.get_parameter("class_embedding.weight")[1], old["class_embedding.weight"][3])
    assert torch.equal(again.network.get_parameter("to_image.weight"), old["to_image.weight"])


OWN = """
import torch
from torch import nn
class Block(nn.Module):
    def __init__(self, out):
        super().__init__()
        self.class_embedding = nn.Embedding(9, 4)
        self.last = nn.Linear(4, out)
    def forward(self, given, classes):
        return self.last(given + self.class_embedding(classes))
class Generator(nn.Module):
    def __init__(self):
        super().__init__()
        self.latent = 4
        self.blocks = nn.ModuleList([Block(64)])
    def forward(self, latents, classes):
        return self.blocks[0](latents, classes).tanh().view(-1, 1, 8, 8)
class Critic(nn.Module):
    def __init__(self):
        super().__init__()
        self.first = nn.Linear(64, 4)
        self.block = Block(1)
    def forward(self, images, classes):
        return self.block(torch.relu(self.first(images.flatten(1))), classes)
def pair():
    return Generator(), Critic()
"""


def test_a_pair_of_ones_own_is_trained_and_exported(trainers: Zygote, judge: Path, tmp_path: Path) -> None:
    """Its tables stand in blocks, and its file has the name of the program; one without classes is trained beside it."""
    (tmp_path / "sample.py").write_text(OWN)
    for name, condition, model in (
        ("own", "class", {"source": f"python:{tmp_path}/sample.py:pair"}),
        ("plain", "none", {"source": "gan:resnet", "args": {"width": 8, "latent": 8}}),
    ):
        folder = tmp_path / name
        folder.mkdir()
        path = file(folder, judge, steps=2)
        run = json.loads(path.read_text())
        run["model"] = {**model, "adapt": {"in_channels": 1, "image_size": 8}}
        run["task"] |= {"condition": condition, "critic": {}}
        path.write_text(json.dumps(run))
        assert trainers.run(path, folder) == [0]
        assert main(["export", str(folder / "run"), "--device", "cpu", "--out", str(folder / "export")]) == 0
    assert (
        main(["sample", str(tmp_path / "plain" / "run"), "--seeds", "3", "--out", str(tmp_path / "few"), "--device", "cpu"]) == 0
    )
    assert [path.name for path in (tmp_path / "few").glob("*.png")] == ["000003.png"]
    out = tmp_path / "own" / "export"
    assert (out / "sample_network.py").read_text() == OWN
    program = [sys.executable, "-I", str(out / "sample.py"), str(tmp_path / "made"), "3"]
    subprocess.run(program, check=True, cwd=tmp_path, capture_output=True)
    assert {path.name for path in (tmp_path / "made").iterdir()} == {f"{digit}-000003.png" for digit in range(5)}
