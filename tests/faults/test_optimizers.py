"""Optimizers and schedules with a state of their own: killed, started again, the same end."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from tests.trainers import Zygote, points, run_file, same

SETTINGS: dict[str, dict[str, Any]] = {
    "schedule-free": {"optimizer": {"kind": "schedule_free", "lr": 0.01}, "schedule": {"kind": "constant", "warmup": 0.2}},
    "prodigy": {"optimizer": {"kind": "prodigy"}, "schedule": {"kind": "one_cycle"}},
    "plateau": {"optimizer": {"kind": "timm", "name": "lamb", "lr": 0.02},
                "schedule": {"kind": "plateau", "metric": "val/loss", "patience": 0, "min_delta": 0.2, "gamma": 0.5}},
    "8-bit": {"optimizer": {"kind": "timm", "name": "bnbadamw8bit", "lr": 0.01, "args": {"min_8bit_size": 64}}},
}  # fmt: skip


def file(folder: Path, name: str) -> Path:
    path = run_file(folder, train={"ema": None if name == "schedule-free" else 0.9}, evaluate={"every": "6 steps"})
    path.write_text(json.dumps({**json.loads(path.read_text()), **SETTINGS[name]}))
    return path


@pytest.mark.parametrize("name", SETTINGS)
def test_killed_and_started_again_it_ends_the_same(trainers: Zygote, tmp_path: Path, name: str) -> None:
    whole, broken = tmp_path / "whole", tmp_path / "broken"
    assert trainers.run(file(whole, name), whole) == [0]
    for step in (9, 26):
        assert trainers.run(file(broken, name), broken, fault=f"step@{step}=kill") == [-9]
    assert trainers.run(file(broken, name), broken) == [0]
    same(broken / "run", whole / "run")
    rates = {p["lr"] for p in points(whole / "run") if "lr" in p}
    if name == "plateau":
        assert len(rates) > 1
        assert {round(rate / 0.02, 9) for rate in rates} <= {0.5**power for power in range(8)}


def test_the_average_is_what_is_evaluated_and_used(trainers: Zygote, tmp_path: Path) -> None:
    assert trainers.run(file(tmp_path, "schedule-free"), tmp_path) == [0]
    newest = max((tmp_path / "run" / "checkpoints").glob("step-*"))
    trained, averaged = (load_file(newest / f"model{kind}.safetensors") for kind in ("", "-average"))
    state = load_file(newest / "model-optimizer.safetensors")
    name = "head.weight"
    assert not torch.equal(trained[name], averaged[name])
    assert torch.allclose(averaged[name], trained[name].lerp(state[f"{name}.z"], 1 - 1 / 0.9), atol=1e-6)
    from trainer.restored import restore
    from trainer.rundir import RunDir

    assert torch.equal(restore(RunDir(tmp_path / "run"), "last").network.state_dict()[name], averaged[name])
