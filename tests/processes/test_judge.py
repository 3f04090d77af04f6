"""Judging a graft: what it forgot of its source task, and what the same network does from scratch."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

from tests.trainers import ROOT, run_file
from trainer.rundir import RunDir


def graft(folder: Path, *words: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-c", "from launcher.cli import main; main()", *words], cwd=folder, capture_output=True, text=True,
        timeout=120, check=False, env={"PATH": "/usr/bin:/bin", "PYTHONPATH": str(ROOT), "HOME": str(folder)},
    )  # fmt: skip


@pytest.fixture(scope="module")
def shop(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a trained run of the digits 0 to 4, and a run file that grafts it onto 5 to 9."""
    folder = tmp_path_factory.mktemp("shop")
    run_file(folder, train={"steps": 20, "ema": None})
    done = graft(folder, "train", "run.yaml")
    assert done.returncode == 0, done.stderr
    run = json.loads((folder / "run.yaml").read_text())
    weights = str(RunDir(folder / "runs" / "run").checkpoints / "step-00000020" / "model.safetensors")
    run |= {"name": "second", "model": {**run["model"], "weights": weights}}
    run["data"] |= {"train": "digits:5-9/train", "val": "digits:5-9/val"}
    run["evaluate"]["source"] = "digits:0-4/val"
    (folder / "second.yaml").write_text(json.dumps(run))
    return folder


def test_what_is_forgotten_is_measured_with_the_old_head(shop: Path) -> None:
    done = graft(shop, "train", "second.yaml", "optimizer.lr=0.02", "train.steps=60")
    assert done.returncode == 0, done.stderr
    found = json.loads((shop / "runs/second/summary.json").read_text())["forgetting"]
    own = json.loads(graft(shop, "evaluate", "run", "--checkpoint", "20", "--json").stdout)
    assert found["before"]["accuracy"] == pytest.approx(own["metrics"]["accuracy"])
    assert found["before"]["loss"] == pytest.approx(own["metrics"]["loss"], rel=1e-5)
    assert found["samples"] == own["samples"]
    assert found["after"]["loss"] > found["before"]["loss"] + 0.02, "training on other digits costs the old ones"
    assert found["forgetting"] == pytest.approx(found["before"]["accuracy"] - found["after"]["accuracy"])
    again = graft(shop, "forgetting", "second", "--json")
    assert json.loads(again.stdout) == found
    refused = graft(shop, "forgetting", "run", "digits:0-4/val")
    assert refused.returncode == 2
    assert "trained from scratch" in refused.stderr
    other = graft(shop, "forgetting", "second", "digits:0-6/val")
    assert other.returncode == 2
    assert "have no head for its 7 classes" in other.stderr


def test_a_frozen_trunk_forgets_nothing_and_scratch_is_one_flag(shop: Path) -> None:
    """With a head of another kind as well: what was forgotten is measured with the one that the weights came with."""
    layers = "model.adapt.layers={kind: attention}"
    done = graft(shop, "train", "second.yaml", "strategy.kind=head", "name=head", "--scratch", "train.steps=8", layers)
    assert done.returncode == 0, done.stderr
    found = json.loads((shop / "runs/head/summary.json").read_text())["forgetting"]
    assert found["after"] == found["before"]
    scratch = RunDir(shop / "runs/head-scratch").load()
    assert (scratch.model.weights, scratch.strategy.kind, scratch.train.steps) == ("none", "full", 8)
    page = (shop / "runs/head/scratch.html").read_text()
    assert "head-scratch" in page
    assert "head-scratch: best val/accuracy" in done.stdout
    refused = graft(shop, "train", "run.yaml", "--scratch")
    assert refused.returncode == 2
    assert "model.weights is none already" in refused.stderr
