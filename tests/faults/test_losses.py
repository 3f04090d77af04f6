"""Further losses and their balances: killed, started again, the same end; on one rank and on two."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from tests.network import deep
from tests.trainers import NETWORK, Zygote, points, run_file, same, step_of

KILLED = -9
SOFT = {"soft": {"kind": "logits", "temperature": 2.0}}
HINTS = {"hints": {"kind": "features", "layers": ["units.1"]}, "maps": {"kind": "attention", "layers": ["units.0", "units.2"]}}
NEAR = {"near": {"kind": "l2_sp"}, "keep": {"kind": "features", "of": "start"}}
LOSSES: dict[str, dict[str, Any]] = {
    "distilled": {"add": {**SOFT, **HINTS}, "weights": {"task": 0.5, "soft": 0.5, "hints": 2.0}},
    "near": {"add": NEAR, "weights": {"near": 0.1}},
    "uncertainty": {"add": SOFT, "balance": {"kind": "uncertainty"}},
    "gradnorm": {"add": SOFT, "balance": {"kind": "gradnorm"}},
    "dwa": {"add": SOFT, "balance": {"kind": "dwa", "every": "5 steps"}},
    "adatask": {"add": SOFT, "balance": {"kind": "adatask"}},
}


def weights(folder: Path, seed: int) -> Path:
    """A file of the tests' deep network, as somebody might have trained it."""
    file = folder / f"weights-{seed}.safetensors"
    if not file.exists():
        torch.manual_seed(seed)
        folder.mkdir(parents=True, exist_ok=True)
        save_file(deep().state_dict(), file, {"classes": json.dumps(["0", "1", "2", "3", "4"])})
    return file


def file(folder: Path, name: str, *, strategy: dict[str, Any] | None = None, **args: Any) -> Path:
    source = {"source": f"python:{NETWORK}:deep", "args": args}
    small = {"in_channels": 1, "image_size": 8}
    path = run_file(
        folder, model={**source, "weights": str(weights(folder, 1)), "adapt": small}, train={"clip": None, "steps": 30}
    )
    losses = json.loads(json.dumps(LOSSES[name]))
    if any(loss.get("of") != "start" and loss["kind"] != "l2_sp" for loss in losses["add"].values()):
        losses["teacher"] = {**source, "weights": str(weights(folder, 2)), "adapt": {"in_channels": 1}}
    run = {**json.loads(path.read_text()), "losses": losses, "strategy": strategy or {"kind": "full"}}
    path.write_text(json.dumps(run))
    return path


@pytest.mark.parametrize(
    ("name", "world"), [("distilled", 2), ("near", 1), ("uncertainty", 2), ("gradnorm", 2), ("dwa", 1), ("adatask", 1)]
)
def test_killed_and_started_again_it_ends_the_same(trainers: Zygote, tmp_path: Path, name: str, world: int) -> None:
    whole, broken = tmp_path / "whole", tmp_path / "broken"
    assert trainers.run(file(whole, name), whole, world=world) == [0] * world
    for step in (9, 23):
        assert trainers.run(file(broken, name), broken, world=world, fault=f"step@{step}:0=kill")[0] == KILLED
    assert trainers.run(file(broken, name), broken, world=world) == [0] * world
    same(broken / "run", whole / "run")
    record = [p for p in points(whole / "run") if "train/loss" in p]
    names = ["task", *LOSSES[name]["add"]]
    assert all({f"loss/{n}", f"weight/{n}"} <= set(p) for p in record for n in names)
    if name in ("distilled", "near"):
        given = LOSSES[name]["weights"]
        for p in record:
            assert p["train/loss"] == pytest.approx(sum(given.get(n, 1.0) * p[f"loss/{n}"] for n in names), rel=1e-5)
            assert all(p[f"weight/{n}"] == pytest.approx(given.get(n, 1.0)) for n in names)
    elif name != "adatask":
        assert len({p["weight/soft"] for p in record}) > 3, "the weights move"


@pytest.mark.parametrize("name", ["distilled", "near", "uncertainty", "gradnorm", "dwa", "adatask"])
def test_two_ranks_learn_what_one_does(trainers: Zygote, tmp_path: Path, name: str) -> None:
    """Also with two micro-batches a step."""
    found = []
    for world, micro in ((1, "auto"), (2, 6)):
        folder = tmp_path / str(world)
        path = file(folder, name, dropout=0.0, norm=False)
        assert trainers.run(path, folder, world=world, args=(f"train.micro_batch={micro}", "train.steps=15")) == [0] * world
        columns = [f"{kind}/{n}" for n in ("task", *LOSSES[name]["add"]) for kind in ("loss", "weight")]
        found.append([[p[c] for c in ("train/loss", *columns)] for p in points(folder / "run") if "train/loss" in p])
    assert len(found[0]) == 15
    assert torch.tensor(found[0]).allclose(torch.tensor(found[1]), atol=2e-5, rtol=1e-4)


def test_a_teacher_is_learnt_from(trainers: Zygote, tmp_path: Path) -> None:
    """With its answers alone the network comes to answer as it does, and what helped to learn is not in the export."""
    path = file(tmp_path, "distilled")
    run = json.loads(path.read_text())
    run["losses"]["add"], run["losses"]["weights"] = SOFT, {"task": 0.0}
    path.write_text(json.dumps(run))
    assert trainers.run(path, tmp_path, args=("train.steps=150", "optimizer.lr=0.01", "train.ema=null")) == [0]
    record = [p["loss/soft"] for p in points(tmp_path / "run") if "loss/soft" in p]
    assert sum(record[-5:]) < 0.2 * sum(record[:5])
    newest = max((tmp_path / "run" / "checkpoints").glob("step-*"))
    assert set(load_file(newest / "model.safetensors")) == set(deep().state_dict())


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"teacher": {"args": {"classes": 7}}}, "does not answer in all classes of the task"),
        ({"teacher": {"adapt": {"in_channels": 3}}}, "losses.teacher.adapt.in_channels: 1"),
        ({"teacher": {"weights": "none"}}, "never trained teaches nothing"),
        ({"add": {"hints": {"kind": "features", "layers": ["unit.1"]}}}, "did you mean 'units.1'"),
        ({"add": {"task": {"kind": "logits"}}}, "'task' is the task's own loss"),
        ({"weights": {"soft": 1, "sfot": 2}}, "there is no loss 'sfot'; did you mean 'soft'"),
        ({"weights": {"task": 0, "soft": 0}}, "all are 0"),
        ({"add": {}}, "nothing looks at it"),
    ],
)
def test_what_does_not_fit_is_refused_before_training(trainers: Zygote, tmp_path: Path, change: Any, said: str) -> None:
    path = file(tmp_path, "uncertainty")
    run = json.loads(path.read_text())
    for section, value in change.items():
        mixed = {**run["losses"].get(section, {}), **value}
        run["losses"][section] = value if section == "add" else mixed
    if "classes" in change.get("teacher", {}).get("args", {}):
        torch.manual_seed(3)
        other = tmp_path / "seven.safetensors"
        save_file(deep(7).state_dict(), other)
        run["losses"]["teacher"]["weights"] = str(other)
    path.write_text(json.dumps(run))
    (rank,) = trainers.start(path, tmp_path)
    assert rank.wait() == 2, rank.text()
    assert said in rank.text()
    assert not list((tmp_path / "run" / "checkpoints").glob("step-*"))


def test_nothing_to_balance_or_to_compare(trainers: Zygote, tmp_path: Path) -> None:
    for losses, said in (
        ({"balance": {"kind": "dwa"}}, "balances several losses, and there is one"),
        ({"add": SOFT, "balance": {"kind": "gradnorm"}}, "a layer of the trunk that learns from the start, and none does"),
        ({"add": {"near": NEAR["near"]}}, "no layer of the trunk learns"),
        ({"add": {"keep": NEAR["keep"]}}, "no layer of the trunk learns"),
    ):
        path = file(tmp_path, "uncertainty", strategy={"kind": "head"})
        run = json.loads(path.read_text())
        teacher = {"teacher": run["losses"]["teacher"]} if losses.get("add") == SOFT else {}
        run["losses"], run["model"]["adapt"]["head"] = {**losses, **teacher}, "new"
        path.write_text(json.dumps(run))
        (rank,) = trainers.start(path, tmp_path, args=("--accept-changes",))
        assert rank.wait() == 2, rank.text()
        assert said in rank.text()


def test_a_teacher_that_changed_is_refused(trainers: Zygote, tmp_path: Path) -> None:
    path = file(tmp_path, "uncertainty")
    assert trainers.run(path, tmp_path, fault="step@23:0=kill") == [KILLED]
    assert step_of(tmp_path / "run"), "each checkpoint waits for the one before it to be durable, so there is one by now"
    torch.manual_seed(7)
    save_file(deep().state_dict(), weights(tmp_path, 2))
    (rank,) = trainers.start(path, tmp_path)
    assert rank.wait() == 3
    assert "losses.teacher has other weights now" in rank.text()
    assert trainers.run(path, tmp_path, args=("--accept-changes",)) == [0]
