"""Schedules of what learns, and adapters: killed, started again, the same end; on one rank and on two."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from safetensors.torch import load_file

from tests.trainers import NETWORK, Zygote, points, run_file, same

KILLED = -9
MODEL = {"source": f"python:{NETWORK}:deep"}
GRADUAL = {"kind": "gradual", "every": "10 steps", "layer_decay": 0.5}
STRATEGIES: dict[str, dict[str, Any]] = {
    "gradual": GRADUAL,
    "probe": {"kind": "probe", "probe": 0.5, "rates": {"stem": 0.1}},
    "lora": {"kind": "lora", "rank": 2, "dropout": 0.1, "train": ["units.2.norm"]},
    "dora": {"kind": "lora", "method": "dora", "rank": 2},
}


def file(folder: Path, strategy: dict[str, Any], **args: Any) -> Path:
    path = run_file(folder, model={**MODEL, "args": args})
    run = {**json.loads(path.read_text()), "strategy": strategy}  # which `run_file` would mix with its own
    path.write_text(json.dumps(run))
    return path


@pytest.mark.parametrize(("name", "world"), [("gradual", 1), ("gradual", 2), ("probe", 1), ("lora", 2), ("dora", 1)])
def test_killed_and_started_again_it_ends_the_same(trainers: Zygote, tmp_path: Path, name: str, world: int) -> None:
    """Saved before the first stage (7), in the second (14) and the fourth (35); killed in between."""
    whole, broken = tmp_path / "whole", tmp_path / "broken"
    assert trainers.run(file(whole, STRATEGIES[name]), whole, world=world) == [0] * world
    codes = trainers.run(file(broken, STRATEGIES[name]), broken, world=world, fault="step@9:0=kill")
    assert codes[0] == KILLED
    codes = trainers.run(file(broken, STRATEGIES[name]), broken, world=world, fault="step@26:0=kill")
    assert codes[0] == KILLED
    assert trainers.run(file(broken, STRATEGIES[name]), broken, world=world) == [0] * world
    same(broken / "run", whole / "run")


def test_blocks_begin_to_learn_when_their_samples_have_come(trainers: Zygote, tmp_path: Path) -> None:
    assert trainers.run(file(tmp_path, GRADUAL), tmp_path, args=("checkpoint.every=5 steps", "checkpoint.keep=20")) == [0]
    saved = {int(p.name[5:]): load_file(p / "model.safetensors") for p in (tmp_path / "run" / "checkpoints").glob("step-*")}
    parts = ["head.weight", "units.2.first.weight", "units.1.first.weight", "units.0.first.weight", "stem.weight"]
    for index, name in enumerate(parts):
        start = 10 * index
        moved = {b for a, b in zip(sorted(saved), sorted(saved)[1:], strict=False) if not saved[a][name].equal(saved[b][name])}
        assert moved == {step for step in sorted(saved)[1:] if step > start}, name
        statistics = name.replace("first.weight", "norm.running_mean")
        if statistics != name and statistics in saved[5]:
            still = {step for step in saved if saved[step][statistics].equal(saved[5][statistics])}
            assert still == {step for step in saved if step <= start}, "frozen statistics stay"


def test_two_ranks_learn_what_one_does(trainers: Zygote, tmp_path: Path) -> None:
    losses = []
    for world in (1, 2):
        folder = tmp_path / str(world)
        path = file(folder, GRADUAL, dropout=0.0, norm=False)
        assert trainers.run(path, folder, world=world) == [0] * world
        losses.append([p["train/loss"] for p in points(folder / "run") if "train/loss" in p])
    assert losses[0] == pytest.approx(losses[1], abs=1e-5)
    assert len(losses[0]) == 40
