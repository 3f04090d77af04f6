"""N1, N2, R1, R2 and the arithmetic of batches: what the losses must be."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from tests.trainers import Zygote, hashes, points, run_file, same
from trainer.rundir import RunDir, read_points

PLAIN = {"args": {"norm": False, "dropout": 0.0}}


def losses(folder: Path) -> dict[int, float]:
    return {p["step"]: p["train/loss"] for p in points(folder) if "train/loss" in p}


def finite(folder: Path) -> bool:
    newest = max((folder / "checkpoints").glob("step-*"))
    tensors = [item for file in newest.glob("*.safetensors") for item in load_file(file).items()]
    return all(bool(value.isfinite().all()) for name, value in tensors if name != "mask")


def test_a_nan_on_one_rank_is_skipped_by_all(trainers: Zygote, tmp_path: Path) -> None:
    run = run_file(tmp_path, model={"args": {"nan_rank": 1, "nan_at": 11}})
    assert trainers.run(run, tmp_path, world=2) == [0, 0]
    (skip,) = [p for p in points(tmp_path / "run") if "skipped" in p]
    assert skip["step"] in (11, 12)  # the network is also called once when it is built
    assert "rank 1" in skip["why"]
    assert finite(tmp_path / "run")
    summary = json.loads((tmp_path / "run" / "summary.json").read_text())
    assert summary["skipped_steps"] == 1
    found = [p for p in read_points(tmp_path / "run" / "metrics.jsonl") if "checkpoint/stall_s" in p]
    assert 1 <= len(found) <= 7  # one where several were written since the last point
    assert all({"checkpoint/write_s", "checkpoint/bytes"} <= p.keys() for p in found)
    assert 0 < max(p["checkpoint/stall_s"] for p in found) <= summary["checkpoint"]["checkpoint/stall_s"]


def test_too_many_nans_stop_all_ranks_with_a_finite_checkpoint(trainers: Zygote, tmp_path: Path) -> None:
    run = run_file(tmp_path, model={"args": {"nan_rank": 1, "nan_at": 16, "nan_for": 100}}, train={"max_skipped": 3})
    ranks = trainers.start(run, tmp_path, world=2)
    assert [rank.wait() for rank in ranks] == [1, 1]
    marker = RunDir(tmp_path / "run").marker()
    assert marker is not None
    assert marker.state == "FAILED"
    assert "4 steps in a row" in marker.reason
    assert "rank 1" in marker.reason
    assert f"step {marker.step}: " in marker.reason
    assert finite(tmp_path / "run")


def test_a_nan_in_the_picture_of_one_rank(trainers: Zygote, tmp_path: Path) -> None:
    """It also enters the statistics of that rank's BatchNorm, which follow rank 0's; on rank 0 it ends the run for all."""
    for victim, ends in ((1, [0, 0]), (0, [1, 1])):
        run = run_file(tmp_path / str(victim), model={"args": {"nan_rank": victim, "nan_at": 11, "nan_in": True}})
        assert trainers.run(run, tmp_path / str(victim), world=2) == ends
        assert finite(tmp_path / str(victim) / "run")
    marker = RunDir(tmp_path / "0" / "run").marker()
    assert marker is not None
    assert "spoilt the statistics of trunk.1.running_mean" in marker.reason
    assert "rank 0" in marker.reason


def test_a_learning_rate_a_million_times_too_high(trainers: Zygote, tmp_path: Path) -> None:
    run = run_file(tmp_path, optimizer={"kind": "sgd", "lr": 1e5}, train={"clip": None, "max_skipped": 2})
    assert trainers.run(run, tmp_path) in ([0], [1])
    checkpoints = list((tmp_path / "run" / "checkpoints").glob("step-*"))
    assert not checkpoints or finite(tmp_path / "run")
    said = trainers.started[-1].text()
    assert "Traceback" not in said


@pytest.fixture(scope="module")
def splits(zygote: Zygote, tmp_path_factory: pytest.TempPathFactory) -> dict[str, dict[int, float]]:
    """The losses of 50 steps of 8 samples, cut in three ways."""
    found = {}
    for name, world, micro in (("whole", 1, 8), ("ranks", 2, 4), ("accumulated", 1, 4)):
        folder = tmp_path_factory.mktemp(name)
        run = run_file(
            folder,
            model=PLAIN,
            optimizer={"lr": 1e-2},
            train={"steps": 50, "global_batch": 8, "micro_batch": micro},
            checkpoint={"every": "30 steps"},
        )
        assert zygote.run(run, folder, world=world) == [0] * world
        found[name] = losses(folder / "run")
    return found


@pytest.mark.parametrize("name", ["ranks", "accumulated"])
def test_ranks_and_accumulation_change_only_the_split(splits: dict[str, dict[int, float]], name: str) -> None:
    whole, cut = splits["whole"], splits[name]
    assert list(whole) == list(cut) == list(range(1, 51))
    assert max(abs(whole[step] - cut[step]) for step in whole) < 1e-5
    assert min(whole.values()) < whole[1] - 0.3  # they learn


@pytest.mark.parametrize(("before", "after"), [(2, 1), (2, 3), (1, 2)])
def test_another_number_of_ranks_keeps_order_and_schedule(trainers: Zygote, tmp_path: Path, before: int, after: int) -> None:
    for name in ("reference", "moved"):
        (tmp_path / name).mkdir()
    reference = run_file(tmp_path / "reference", model=PLAIN)
    assert trainers.run(reference, tmp_path / "reference") == [0]
    run = run_file(tmp_path / "moved", model=PLAIN)
    fault = f"step@20:{before - 1}=term"
    trainers.run(run, tmp_path / "moved", world=before, fault=fault)
    assert trainers.run(run, tmp_path / "moved", world=after) == [0] * after
    straight, moved = points(tmp_path / "reference" / "run"), points(tmp_path / "moved" / "run")
    assert [(p["step"], p["samples"], p.get("lr")) for p in straight] == [(p["step"], p["samples"], p.get("lr")) for p in moved]
    a, b = losses(tmp_path / "reference" / "run"), losses(tmp_path / "moved" / "run")
    assert max(abs(a[step] - b[step]) for step in a) < 1e-5


@pytest.mark.parametrize(
    "change",
    [{"optimizer": {"lr": 2e-3}}, {"train": {"global_batch": 48}}, {"model": {"args": {"norm": False}}}, {"train": {"seed": 1}}],
)
def test_a_changed_run_is_refused_with_the_difference(trainers: Zygote, tmp_path: Path, change: dict[str, Any]) -> None:
    assert trainers.run(run_file(tmp_path), tmp_path, fault="step@24=term") == [75]
    before = hashes(tmp_path / "run")
    assert trainers.run(run_file(tmp_path, **change), tmp_path) == [3]
    said = trainers.started[-1].text()
    ((section, values),) = change.items()
    ((key, value),) = values.items()
    shown = f"{section}.{key}.norm: null -> false" if isinstance(value, dict) else f"{section}.{key}: "
    assert shown in said
    assert "--accept-changes" in said
    assert hashes(tmp_path / "run") == before


def test_an_accepted_change_goes_on(trainers: Zygote, references: dict[int, Path], tmp_path: Path) -> None:
    assert trainers.run(run_file(tmp_path), tmp_path, fault="step@24=term") == [75]
    changed = run_file(tmp_path, optimizer={"lr": 2e-3})
    assert trainers.run(changed, tmp_path, args=("--accept-changes",)) == [0]
    straight, other = losses(references[1]), losses(tmp_path / "run")
    assert all(straight[step] == other[step] for step in range(1, 25))
    assert straight[30] != other[30]


def test_what_may_change_between_attempts_changes_nothing(trainers: Zygote, references: dict[int, Path], tmp_path: Path) -> None:
    assert trainers.run(run_file(tmp_path), tmp_path, fault="step@24=kill") == [-9]
    run = run_file(tmp_path, data={"workers": 2}, evaluate={"batch": 16}, checkpoint={"keep": 5})
    assert trainers.run(run, tmp_path) == [0]
    assert hashes(tmp_path / "run") == hashes(references[1])


def test_early_stop_ends_the_run_and_stays_ended(trainers: Zygote, tmp_path: Path) -> None:
    run = run_file(
        tmp_path, optimizer={"lr": 1e-9}, train={"steps": 500}, evaluate={"every": "5 steps", "early_stop": {"patience": 3}}
    )
    assert trainers.run(run, tmp_path) == [0]
    last = points(tmp_path / "run")[-1]["step"]
    assert last < 100
    assert trainers.run(run, tmp_path) == [0]
    assert points(tmp_path / "run")[-1]["step"] == last
    same(tmp_path / "run", tmp_path / "run")


def test_an_evaluation_before_the_first_step_is_the_first_best(trainers: Zygote, tmp_path: Path) -> None:
    """Also the fine-tuning that only gets worse: the checkpoint of step 0 is the best, and stays."""
    run = run_file(
        tmp_path, evaluate={"at_start": True}, optimizer={"lr": 1e-12}, train={"ema": None}, checkpoint={"best": "val/f1"}
    )
    assert trainers.run(run, tmp_path, fault="step@24=kill") == [-9]
    assert trainers.run(run, tmp_path) == [0]
    first = next(p for p in points(tmp_path / "run") if "val/f1" in p)
    assert first["step"] == 0
    index = json.loads((tmp_path / "run" / "checkpoints" / "index.json").read_text())
    assert (tmp_path / "run" / "checkpoints" / index["best"]).is_dir()


def test_bfloat16_trains_and_resumes_exactly(trainers: Zygote, tmp_path: Path) -> None:
    for name in ("straight", "broken"):
        (tmp_path / name).mkdir()
    run = run_file(tmp_path, train={"precision": "bf16"})
    assert trainers.run(run, tmp_path / "straight") == [0]
    assert trainers.run(run, tmp_path / "broken", fault="step@24=kill") == [-9]
    assert trainers.run(run, tmp_path / "broken") == [0]
    same(tmp_path / "broken" / "run", tmp_path / "straight" / "run")
    weights = load_file(max((tmp_path / "straight" / "run" / "checkpoints").glob("step-*")) / "model.safetensors")
    assert all(t.dtype != torch.bfloat16 for t in weights.values())  # the weights stay in full precision
