"""Heads of several layers and of attention, trained for real: killed, started again, the same end; on one rank and on two."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image
from safetensors.torch import load_file
from sklearn.datasets import load_digits

from tests.trainers import NETWORK, Zygote, points, run_file, same

KILLED = -9
ATTENTION: dict[str, Any] = {"kind": "attention", "num_heads": 2, "dropout": 0.3}
MLP: dict[str, Any] = {"kind": "mlp", "depth": 2, "width": 12, "norm": True, "dropout": 0.3}


def file(folder: Path, layers: dict[str, Any], strategy: dict[str, Any], **args: Any) -> Path:
    adapt = {"in_channels": 1, "image_size": 8, "layers": layers}
    path = run_file(folder, model={"source": f"python:{NETWORK}:deep", "args": args, "adapt": adapt})
    path.write_text(json.dumps({**json.loads(path.read_text()), "strategy": strategy}))  # `run_file` would mix it with its own
    return path


@pytest.mark.parametrize(
    ("strategy", "world"),
    [({"kind": "full", "rates": {"head.query": 2.0}}, 1), ({"kind": "blocks", "last": 1, "layer_decay": 0.5}, 2)],
)
def test_killed_and_started_again_it_ends_the_same(
    trainers: Zygote, tmp_path: Path, strategy: dict[str, Any], world: int
) -> None:
    whole, broken = tmp_path / "whole", tmp_path / "broken"
    assert trainers.run(file(whole, ATTENTION, strategy), whole, world=world) == [0] * world
    codes = trainers.run(file(broken, ATTENTION, strategy), broken, world=world, fault="step@9:0=kill")
    assert codes[0] == KILLED
    assert trainers.run(file(broken, ATTENTION, strategy), broken, world=world) == [0] * world
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


def test_several_heads_of_three_kinds_are_killed_and_end_the_same(trainers: Zygote, tmp_path: Path) -> None:
    """A class, another class whose column has the name of a module's method, and a number, from one table."""
    digits = load_digits()
    rows = ["image,digit,type,ink"]
    for index, (pixels, digit) in enumerate(zip(digits.images[:120], digits.target, strict=False)):
        Image.fromarray((pixels * 15).astype(np.uint8)).save(tmp_path / f"{index}.png")
        rows.append(f"{index}.png,{digit},{'round' if digit in (0, 6, 8, 9) else 'open'},{pixels.mean():.3f}")
    (tmp_path / "table.csv").write_text("\n".join(rows))
    folders = [tmp_path / "whole", tmp_path / "broken"]
    for folder in folders:
        path = file(folder, MLP, {"kind": "full", "rates": {"head.type_": 0.5}})
        run = json.loads(path.read_text())
        run["task"] = {"kind": "multi"}
        run["model"]["adapt"]["heads"] = {"digit": {"layers": ATTENTION}, "ink": {"layers": {"kind": "linear"}}}
        run["data"] |= {"train": f"csv:{tmp_path}/table.csv?label=digit,type&value=ink", "val": "split:0.2"}
        run["checkpoint"]["best"] = "val/digit_accuracy"
        path.write_text(json.dumps(run))
    assert trainers.run(folders[0] / "run.yaml", folders[0]) == [0]
    assert trainers.run(folders[1] / "run.yaml", folders[1], fault="step@9:0=kill") == [KILLED]
    assert trainers.run(folders[1] / "run.yaml", folders[1]) == [0]
    same(folders[1] / "run", folders[0] / "run")
    newest = max((folders[0] / "run" / "checkpoints").glob("step-*"))
    names = load_file(newest / "model.safetensors").keys()
    assert {"head.digit.query", "head.type_.hidden.0.weight", "head.ink.weight"} <= set(names)
