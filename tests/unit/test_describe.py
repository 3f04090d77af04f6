"""The tree of what learns, as `graft plan` shows it."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

from tests.trainers import NETWORK, ROOT, run_file
from trainer.config import UserError, load
from trainer.describe import describe


def test_the_tree_says_what_learns_from_when_and_how_much_it_takes(tmp_path: Path) -> None:
    path = run_file(tmp_path, model={"source": f"python:{NETWORK}:deep"})
    strategy = "strategy={kind: gradual, every: 100 samples, limit: 2, layer_decay: 0.5}"
    found = describe(load(path, [strategy, "optimizer={kind: sgd, lr: 0.1, momentum: 0.9}"]))
    units = {node["name"]: node for node in next(n for n in found["tree"]["children"] if n["name"] == "units")["children"]}
    unit = 2 * (8 * 8 + 8) + 16
    assert units["0"]["states"] == [{"learns": False}]
    assert units["1"] == {
        "name": "1", "parameters": unit, "learning": unit, "children": [],
        "states": [{"learns": True, "rate": 0.25, "start": 200}],
    }  # fmt: skip
    head = 8 * 5 + 5
    assert found["learning"] == 2 * unit + head
    assert found["parameters"] == 3 * unit + head + 8 * 9 + 8
    assert found["bytes"] == {"weights": 4 * found["parameters"], "gradients": 4 * found["learning"],
                              "optimizer": 4 * found["learning"]}  # fmt: skip
    assert [(group["rate"], group["start"]) for group in found["groups"]] == [(1.0, 0), (0.5, 100), (0.25, 200)]


def test_plan_shows_it_and_refuses_what_matches_nothing(tmp_path: Path) -> None:
    run_file(tmp_path, model={"source": f"python:{NETWORK}:deep"})

    def plan(*words: str) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            [sys.executable, "-m", "launcher", "plan", "run.yaml", *words], cwd=tmp_path, capture_output=True, text=True,
            timeout=120, check=False, env={"PATH": "/usr/bin:/bin", "PYTHONPATH": str(ROOT), "HOME": str(tmp_path)},
        )  # fmt: skip

    done = plan("strategy={kind: blocks, last: 1}")
    assert done.returncode == 0, done.stderr
    assert "0 … 1  320  frozen" in done.stdout
    assert "205 of 605 parameters learn (33.88%)" in done.stdout
    assert "memory foretold for each process: " in done.stdout
    refused = plan("strategy={kind: blocks, last: 5}")
    assert refused.returncode == 2
    assert "strategy.last is 5, and the trunk has 4 blocks: stem, units.0, units.1, units.2" in refused.stderr
    told = json.loads(plan("--json", "--card", "24GiB", "--gpus", "2", "parallel.device=auto").stdout)
    assert told["learning"]["learning"] == 605
    memory = told["learning"]["memory"]
    assert (memory["gpu"], memory["world"], memory["share"], memory["footprint"]["weights"] // 512) == (True, 2, 12, 22)
    assert [one["answer"] for one in memory["cards"]] == ["fits"]
    assert memory["depends"], "a micro-batch that is found by trying changes what BatchNorm learns"
    assert told["failures"]
    still = ("data.augment={crop: none, flip: 0.0}", "strategy={kind: head}")
    kept = plan("--json", *still, "data.cache=features")
    features = json.loads(kept.stdout)["learning"]["features"]
    assert features["text"] == "8 float32 at 'drop', 100% of the work ('drop' draws random numbers in training)"
    assert features["kept"]
    assert features["bytes"] == (723 + 178) * 8 * 4
    assert features["folder"] == str(tmp_path / ".cache" / "graft" / "features")
    assert "not kept: data.cache is none" in plan(*still, "data.cache=none").stdout
    refused = plan("strategy={kind: full}", "data.cache=features")
    assert refused.returncode == 2
    assert "data.cache: features, and they cannot be kept" in refused.stderr


def test_a_mistake_in_a_part_is_told_before_training(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="the network has no part 'heat'; did you mean 'head'"):
        describe(load(run_file(tmp_path), ["strategy={kind: full, rates: {heat: 2}}"]))
