"""Exactness on three ranks, wishes by time, a folder that is taken away, failures of one rank, and changed settings."""

from __future__ import annotations

import contextlib
import json
import os
import subprocess
import sys
import time
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
from safetensors.torch import load_file

from tests.faults.test_disk import mounted
from tests.trainers import ROOT, Zygote, points, run_file, same, step_of, wait_for_step
from trainer.rundir import RunDir

BROKEN = ROOT / "tests" / "broken.py"


def broken(factory: str, **args: Any) -> dict[str, Any]:
    return {"source": f"python:{BROKEN}:{factory}", "args": args}


@pytest.mark.parametrize(
    "sections",
    [
        {},
        {
            "data": {"val": "split:0.2", "per_class": 10},
            "train": {"global_batch": 70, "micro_batch": 9, "steps": 30},  # more than there are, uneven shares
            "task": {"kind": "classify", "loss": "mse", "class_weights": "balanced", "label_smoothing": 0.1},
            "optimizer": {"kind": "sgd", "lr": 0.1},
            "evaluate": {"at_start": True, "every": "3 steps"},
        },
    ],
    ids=["plain", "everything"],
)
def test_three_ranks_end_alike_however_often_they_stop(trainers: Zygote, tmp_path: Path, sections: dict[str, Any]) -> None:
    run = run_file(tmp_path, **sections)
    assert trainers.run(run, tmp_path / "straight", world=3) == [0, 0, 0]
    assert trainers.run(run, tmp_path / "broken", world=3, fault="step@13:1=kill")[1] == -9
    assert trainers.run(run, tmp_path / "broken", world=3, fault="step@22:2=term") == [0, 0, 0]
    assert trainers.run(run, tmp_path / "broken", world=3) == [0, 0, 0]
    same(tmp_path / "broken" / "run", tmp_path / "straight" / "run")


def test_what_is_due_by_time_happens_once_on_two_ranks(trainers: Zygote, tmp_path: Path) -> None:
    run = run_file(
        tmp_path, train={"steps": 500, "ema": None}, evaluate={"every": "0.5 s", "show": 0}, checkpoint={"every": "1 h"}
    )
    assert trainers.run(run, tmp_path, world=2) == [0, 0]
    steps = [p["step"] for p in points(tmp_path / "run") if "val/loss" in p]
    assert len(steps) > 1
    # with each wish granted twice, every other evaluation came right after the one before
    assert all(later - earlier > 1 for earlier, later in pairwise(steps[:-1]))


def test_a_holder_that_lost_the_folder_stops_and_leaves_no_mark(trainers: Zygote, tmp_path: Path) -> None:
    run = run_file(tmp_path, train={"steps": 40000}, evaluate={"every": "1 h"}, checkpoint={"every": "1 h"})
    ranks = trainers.start(run, tmp_path, world=2)
    folder = RunDir(tmp_path / "run")
    wait_for_step(folder.path, 20)
    holder = json.loads(folder.lease.read_text()) | {"token": "another", "pid": os.getpid()}
    folder.lease.write_text(json.dumps(holder))
    began = time.monotonic()
    assert ranks[0].wait() == 3
    assert ranks[1].wait() == 1
    assert time.monotonic() - began < 15
    assert "another process took it over" in ranks[0].text()
    assert "Traceback" not in ranks[0].text()
    assert folder.marker() is None
    assert not folder.summary.exists()
    assert step_of(folder.path) == 0
    assert json.loads(folder.lease.read_text()) == holder


def test_a_second_start_with_other_settings_changes_nothing_of_a_running_one(trainers: Zygote, tmp_path: Path) -> None:
    trainers.start(run_file(tmp_path, train={"steps": 40000}), tmp_path)
    folder = RunDir(tmp_path / "run")
    wait_for_step(folder.path, 5)
    before = folder.config.read_text()
    (second,) = trainers.start(run_file(tmp_path, optimizer={"lr": 5e-3}), tmp_path, args=("--accept-changes",))
    assert second.wait() == 3
    assert "is in use by" in second.text()
    assert folder.config.read_text() == before


@pytest.mark.parametrize("rank", [0, 1])
@pytest.mark.parametrize(
    ("kind", "said"),
    [("value", "ValueError: bad things"), ("memory", "too little memory"), ("exit", "SystemExit: 4")],
)
def test_a_failure_of_one_rank_is_told_once_and_marked(trainers: Zygote, tmp_path: Path, rank: int, kind: str, said: str) -> None:
    file = run_file(tmp_path, model=broken("failing", rank=rank, kind=kind), train={"micro_batch": 12})
    ranks = trainers.start(file, tmp_path, world=2)
    assert [r.wait(timeout=30) for r in ranks] == [1, 1]
    told = [line for r in ranks for line in r.text().splitlines() if line.startswith("graft: ") and "Traceback" not in line]
    assert len(told) == 1
    assert said in told[0]
    marker = RunDir(tmp_path / "run").marker()
    assert marker is not None
    assert (marker.state, marker.code) == ("FAILED", 1)
    assert said in marker.reason


def test_a_layer_that_is_not_used_is_named_on_two_ranks(trainers: Zygote, tmp_path: Path) -> None:
    run = run_file(tmp_path, model=broken("unused"))
    assert trainers.run(run, tmp_path / "two", world=2) == [2, 2]
    marker = RunDir(tmp_path / "two" / "run").marker()
    assert marker is not None
    assert "spare.weight, spare.bias of the network got no gradient" in marker.reason
    assert trainers.run(run, tmp_path / "one") == [0]


def test_an_unknown_best_metric_is_refused_before_the_first_step(trainers: Zygote, tmp_path: Path) -> None:
    assert trainers.run(run_file(tmp_path, checkpoint={"best": "val/accurcy"}), tmp_path) == [2]
    assert "did you mean 'val/accuracy'" in trainers.started[-1].text()
    assert points(tmp_path / "run") == []


@pytest.mark.parametrize(
    ("before", "after"),
    [
        ({"train": {"ema": None}}, {}),
        ({}, {"train": {"ema": None}}),
        ({"strategy": {"kind": "head"}}, {}),
        ({}, {"strategy": {"kind": "head"}}),
        ({"optimizer": {"kind": "sgd", "lr": 0.01}}, {}),
        ({}, {"optimizer": {"kind": "sgd", "lr": 0.01}}),
    ],
    ids=["average-on", "average-off", "head-to-full", "full-to-head", "sgd-to-adamw", "adamw-to-sgd"],
)
def test_accepted_changes_go_on_from_the_weights(
    trainers: Zygote, tmp_path: Path, before: dict[str, Any], after: dict[str, Any]
) -> None:
    assert trainers.run(run_file(tmp_path, **before), tmp_path, fault="step@24=term") == [75]
    assert trainers.run(run_file(tmp_path, **after), tmp_path, args=("--accept-changes",)) == [0]
    marker = RunDir(tmp_path / "run").marker()
    assert marker is not None
    assert marker.state == "DONE"


def test_an_average_has_the_statistics_of_the_network_on_any_number_of_ranks(trainers: Zygote, tmp_path: Path) -> None:
    """What is put around a network for several ranks gives it other buffers than those that it came with."""
    for world in (1, 2):
        folder = tmp_path / str(world)
        assert trainers.run(run_file(folder, train={"steps": 6}), folder, world=world) == [0] * world
        newest = folder / "run" / "checkpoints" / "step-00000006"
        weights, average = load_file(newest / "model.safetensors"), load_file(newest / "model-average.safetensors")
        kept = [name for name in weights if "running" in name or name.endswith("num_batches_tracked")]
        assert len(kept) == 3
        assert all(average[name].equal(weights[name]) for name in kept), world


def test_an_average_begins_with_the_loaded_weights(trainers: Zygote, tmp_path: Path) -> None:
    """What only learns since a change has no saved average: it begins with its weights, not with a fresh network's."""
    assert trainers.run(run_file(tmp_path, strategy={"kind": "head"}), tmp_path, fault="step@24=term") == [75]
    run = run_file(tmp_path, optimizer={"lr": 1e-12})
    assert trainers.run(run, tmp_path, args=("--accept-changes",)) == [0]
    newest = max((tmp_path / "run" / "checkpoints").glob("step-*"))
    weights, average = load_file(newest / "model.safetensors"), load_file(newest / "model-average.safetensors")
    assert (weights["trunk.0.weight"] - average["trunk.0.weight"]).abs().max() < 1e-6


def test_another_global_batch_is_refused_with_the_arithmetic(trainers: Zygote, tmp_path: Path) -> None:
    assert trainers.run(run_file(tmp_path), tmp_path, fault="step@20=term") == [75]
    changed = run_file(tmp_path, train={"global_batch": 48})
    assert trainers.run(changed, tmp_path, args=("--accept-changes",)) == [3]
    assert "20 x 48 is 960" in trainers.started[-1].text()
    assert "train.global_batch=24" in trainers.started[-1].text()


def test_a_disk_that_is_full_at_the_last_save_is_told_without_a_marker(trainers: Zygote, tmp_path: Path) -> None:
    runs = tmp_path / "small"
    run = run_file(tmp_path, train={"steps": 1500}, checkpoint={"every": "1 h"}, evaluate={"every": "5000 epochs"})
    with mounted(runs, "size=4m"):
        (rank,) = trainers.start(run, tmp_path, args=("--runs", str(runs)))  # its output goes to another disk
        wait_for_step(runs / "run", 20)
        with (runs / "ballast").open("wb") as file, contextlib.suppress(OSError):
            while True:
                os.write(file.fileno(), bytes(4096))
        assert rank.wait() == 1
        assert "graft: the checkpoint of step 1500 could not be written: [Errno 28]" in rank.text()
        assert "Traceback" not in rank.text()
        (runs / "ballast").unlink()
        assert trainers.run(run, tmp_path, args=("--runs", str(runs))) == [0]
        assert step_of(runs / "run") == 1500


def test_a_reader_that_goes_away_does_not_end_the_training(tmp_path: Path) -> None:
    run = run_file(tmp_path)
    command = f"{sys.executable} -m trainer train {run} --runs {tmp_path} 2>&1 >/dev/null | head -c 1"
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT)}
    subprocess.run(["bash", "-c", command], cwd=tmp_path, env=environment, check=True, capture_output=True, timeout=60)
    marker = RunDir(tmp_path / "run").marker()
    assert marker is not None
    assert marker.state == "DONE"
