"""Heads of several layers and of attention, trained for real: killed, started again, the same end; on one rank and on two."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from safetensors.torch import load_file

from tests.trainers import NETWORK, Zygote, points, run_file, same

KILLED = -9
HEADS: dict[str, dict[str, Any]] = {
    "attention": {"kind": "attention", "num_heads": 2, "dropout": 0.3},
    "mlp": {"kind": "mlp", "depth": 2, "width": 12, "norm": True, "dropout": 0.3},
}


def file(folder: Path, layers: dict[str, Any], strategy: dict[str, Any], **args: Any) -> Path:
    adapt = {"in_channels": 1, "image_size": 8, "layers": layers}
    path = run_file(folder, model={"source": f"python:{NETWORK}:deep", "args": args, "adapt": adapt})
    path.write_text(json.dumps({**json.loads(path.read_text()), "strategy": strategy}))  # `run_file` would mix it with its own
    return path


@pytest.mark.parametrize(
    ("kind", "strategy", "world"),
    [
        ("attention", {"kind": "full", "rates": {"head.query": 2.0}}, 1),
        ("attention", {"kind": "blocks", "last": 1, "layer_decay": 0.5}, 2),
        ("mlp", {"kind": "lora", "rank": 2}, 1),
    ],
)
def test_killed_and_started_again_it_ends_the_same(
    trainers: Zygote, tmp_path: Path, kind: str, strategy: dict[str, Any], world: int
) -> None:
    whole, broken = tmp_path / "whole", tmp_path / "broken"
    assert trainers.run(file(whole, HEADS[kind], strategy), whole, world=world) == [0] * world
    codes = trainers.run(file(broken, HEADS[kind], strategy), broken, world=world, fault="step@9:0=kill")
    assert codes[0] == KILLED
    assert trainers.run(file(broken, HEADS[kind], strategy), broken, world=world) == [0] * world
    same(broken / "run", whole / "run")
    newest = max((whole / "run" / "checkpoints").glob("step-*"))
    assert any(name.startswith("head.out") for name in load_file(newest / "model-average.safetensors"))


def test_two_ranks_learn_what_one_does(trainers: Zygote, tmp_path: Path) -> None:
    losses = []
    for world in (1, 2):
        folder = tmp_path / str(world)
        path = file(folder, {"kind": "attention"}, {"kind": "full"}, dropout=0.0, norm=False)
        assert trainers.run(path, folder, world=world) == [0] * world
        losses.append([p["train/loss"] for p in points(folder / "run") if "train/loss" in p])
    assert losses[0] == pytest.approx(losses[1], abs=1e-5)
    assert len(losses[0]) == 40
