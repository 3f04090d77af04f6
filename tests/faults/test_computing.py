"""Compiled, worked out again, channels last, in half precision: killed and started again, the same end."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path

import pytest

from tests.faults.test_strategies import file
from tests.trainers import Zygote, points, same
from trainer.checkpoint import read

KILLED = -9
BLOCKS = {"kind": "blocks", "last": 2}
SHORT = ("train.steps=12", "evaluate.every=6 steps", "checkpoint.every=4 steps")
# what a compiler of C++ would take minutes for is gone through by torch's own tracing all the same
TRACED = {"trainer.runtime.compiled.BACKEND": "aot_eager"}
OVERFLOWS = {"trainer.runtime.computing.SCALE": 2.0**22}


@pytest.fixture
def ready(trainers: Zygote) -> Zygote:
    """Imports that take longer than the runs."""
    trainers.preload("torch._dynamo.backends.debugging", "torch._inductor.config", "torch._functorch.aot_autograd")
    return trainers


def ends(
    trainers: Zygote, folder: Path, args: tuple[str, ...] = (), constants: Mapping[str, float | str] | None = None, *,
    fault: str = "",
) -> list[int]:  # fmt: skip
    ranks = trainers.start(file(folder, BLOCKS), folder, world=2, args=(*SHORT, *args), constants=constants, fault=fault)
    return [rank.wait() for rank in ranks]


def test_compiled_and_worked_out_again_it_ends_as_without(ready: Zygote, tmp_path: Path) -> None:
    """With BatchNorm, dropout, an average and a frozen part, on two ranks; names and losses are those of a plain run."""
    plain, whole, broken = tmp_path / "plain", tmp_path / "whole", tmp_path / "broken"
    layout = ("train.channels_last=true",)  # which rounds otherwise, and so does the plain run
    args = ("train.compile=blocks", "train.checkpointing=true", *layout)
    assert ends(ready, plain, layout) == [0, 0]
    assert ends(ready, whole, args, TRACED) == [0, 0]
    assert KILLED in ends(ready, broken, args, TRACED, fault="step@6:1=kill")
    assert ends(ready, broken, args, TRACED) == [0, 0]
    same(broken / "run", whole / "run")
    for one, other in zip(points(whole / "run"), points(plain / "run"), strict=True):
        assert one == pytest.approx(other, abs=2e-5)
    files = [read(max((folder / "run" / "checkpoints").glob("step-*"))) for folder in (whole, plain)]
    assert [sorted(held.names) for held in files[0].values()] == [sorted(held.names) for held in files[1].values()]
    told = json.loads((whole / "run" / "manifest.json").read_text())["computes"]
    assert (told["compile"], told["checkpointing"], told["channels_last"]) == ("blocks", True, True)


def test_the_scale_of_half_precision_goes_on(trainers: Zygote, tmp_path: Path) -> None:
    """Its first steps overflow and are skipped on both ranks; killed while it still is being halved, and later."""
    whole, broken = tmp_path / "whole", tmp_path / "broken"
    args = ("train.precision=fp16", "checkpoint.every=2 steps")
    assert ends(trainers, whole, args, OVERFLOWS) == [0, 0]
    for step in (3, 9):
        assert KILLED in ends(trainers, broken, args, OVERFLOWS, fault=f"step@{step}:1=kill")
    assert ends(trainers, broken, args) == [0, 0], "the scale is that of the checkpoint, not the first one"
    same(broken / "run", whole / "run")
    skipped = [(p["step"], p["skipped"]) for p in points(whole / "run") if "skipped" in p]
    assert 3 < len(skipped) < 12
    assert skipped == [(step, step) for step in range(1, len(skipped) + 1)]
    newest = max((whole / "run" / "checkpoints").glob("step-*"))
    state = next(json.loads(p.read_text()) for p in newest.glob("*.json") if "scaler" in json.loads(p.read_text()))
    assert state["scaler"]["scale"] == 2.0 ** (22 - len(skipped))
