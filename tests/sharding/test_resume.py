"""Killed and started again: the same end to the bit; on another kind and another number of ranks: the same losses."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from tests.faults.test_strategies import STRATEGIES, file
from tests.sharding.conftest import column, plain, run
from tests.trainers import Zygote, points, same, step_of
from trainer.checkpoint import read
from trainer.rundir import RunDir

KILLED = -9
SHORT = ("train.steps=28",)
OFTEN = (*SHORT, "checkpoint.every=5 steps", "checkpoint.keep=20")


@pytest.fixture(scope="module")
def gradual(ready: Zygote, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Blocks that begin one after the other, by two ranks that hold everything."""
    folder = tmp_path_factory.mktemp("gradual")
    assert run(ready, file(folder, STRATEGIES["gradual"]), folder, "ddp", args=SHORT) == [0, 0]
    return folder / "run"


@pytest.mark.parametrize("kind", ["zero2", "zero3", "fsdp"])
def test_killed_and_started_again_it_ends_the_same(trainers: Zygote, gradual: Path, tmp_path: Path, kind: str) -> None:
    """With BatchNorm, dropout, clipping and an average, and what learns changing at steps 10 and 20; killed between steps,
    and within a save."""
    whole, broken = tmp_path / "whole", tmp_path / "broken"
    assert run(trainers, file(whole, STRATEGIES["gradual"]), whole, kind, args=OFTEN) == [0, 0]
    assert column(whole / "run", "train/loss") == pytest.approx(column(gradual, "train/loss"), abs=1e-5)
    assert column(whole / "run", "val/loss") == pytest.approx(column(gradual, "val/loss"), abs=1e-5)
    for fault in ("step@9:1=kill", "save-model@20:1=kill"):
        assert KILLED in run(trainers, file(broken, STRATEGIES["gradual"]), broken, kind, args=OFTEN, fault=fault)
    assert run(trainers, file(broken, STRATEGIES["gradual"]), broken, kind, args=OFTEN) == [0, 0]
    same(broken / "run", whole / "run")
    begins_when_due(whole / "run")


def begins_when_due(folder: Path) -> None:
    """No parameter moves, nor decays, before its samples have come."""
    saved = {int(p.name[5:]): read(p)["model.safetensors"] for p in (folder / "checkpoints").glob("step-*")}
    parts = ["head.weight", "units.2.first.weight", "units.1.first.weight", "units.0.first.weight", "stem.weight"]
    for index, name in enumerate(parts):
        start = 10 * index
        moved = {b for a, b in zip(sorted(saved), sorted(saved)[1:], strict=False) if not saved[a][name].equal(saved[b][name])}
        assert moved == {step for step in sorted(saved)[1:] if step > start}, name


def test_it_goes_on_as_any_kind_on_any_number_of_ranks(trainers: Zygote, single: Path, tmp_path: Path) -> None:
    """Order, batch and schedule stay; each attempt reads what another kind wrote."""
    for step, (kind, world) in enumerate([("ddp", 2), ("zero3", 2), ("fsdp", 3), ("zero2", 2), ("fsdp", 2), ("zero1", 3)], 1):
        codes = run(trainers, plain(tmp_path), tmp_path, kind, world=world, fault=f"step@{6 * step}:{world - 1}=term")
        assert codes == [0] * world, trainers.started[-1].text()
        marker = RunDir(tmp_path / "run").marker()
        assert marker is not None
        assert (marker.state, marker.step) == ("REQUEUE", step_of(tmp_path / "run"))
    assert trainers.run(plain(tmp_path), tmp_path) == [0]
    moved, straight = points(tmp_path / "run"), points(single)
    assert [(p["step"], p["samples"], p.get("lr")) for p in moved] == [(p["step"], p["samples"], p.get("lr")) for p in straight]
    a, b = column(tmp_path / "run", "train/loss"), column(single, "train/loss")
    assert max(abs(x - y) for x, y in zip(a, b, strict=True)) < 1e-4
    newest = [max((folder / "checkpoints").glob("step-*")) for folder in (tmp_path / "run", single)]
    ends = [load_file(folder / "model-optimizer.safetensors") for folder in newest]
    assert set(ends[0]) == set(ends[1])
    assert all(torch.allclose(ends[0][n], ends[1][n], atol=1e-4) for n in ends[0])


@pytest.mark.parametrize(("strategy", "kinds"), [("lora", ["zero3", "fsdp"]), ("probe", ["zero1", "fsdp"]), ("dora", ["zero2"])])
def test_strategies(trainers: Zygote, tmp_path: Path, strategy: str, kinds: list[str]) -> None:
    """Adapters beside frozen layers and new ones, with an average; the trunk that begins when the probe is done."""
    found = []
    for name in ("ddp", *kinds):
        folder = tmp_path / name
        path = file(folder, STRATEGIES[strategy])
        assert run(trainers, path, folder, name, args=("train.steps=16", "optimizer.lr=0.01", "train.ema=0.9")) == [0, 0]
        found.append([*column(folder / "run", "train/loss"), *column(folder / "run", "val/loss")])
    for other in found[1:]:
        assert found[0] == pytest.approx(other, abs=1e-5)
