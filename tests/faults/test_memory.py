"""`train.micro_batch: auto` where one of two ranks runs out of memory: both shrink, none waits, and nothing else changes."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from tests.trainers import ROOT, Zygote, points, run_file, same
from trainer.rundir import RunDir, read_points, read_sizes

KILLED = -9
MIB = 1 << 20
SHORT = {"steps": 12, "ema": 0.9}
BROKEN = f"python:{ROOT / 'tests' / 'broken.py'}:hungry"


def file(folder: Path, *, train: dict[str, Any] | None = None, **args: Any) -> Path:
    """Two ranks take 12 samples each; rank 1 is the one that has too little."""
    return run_file(
        folder, model={"source": BROKEN, "args": args}, train={**SHORT, **(train or {})}, checkpoint={"every": "2 steps"},
        evaluate={"every": "6 steps"},
    )  # fmt: skip


def test_what_is_tried_before_the_first_step_changes_nothing(trainers: Zygote, tmp_path: Path) -> None:
    """An allocation that fails in truth (the address space is limited), with BatchNorm, dropout and an average; killed while it
    tries, and later: to the bit the run with that micro-batch written out, which is never tried."""
    hungry: dict[str, Any] = {"each": 256 * MIB, "address_space": 1450 * MIB, "norm": True, "dropout": 0.3}
    found, written = tmp_path / "found", tmp_path / "written"
    run = file(found, **hungry)
    assert KILLED in trainers.run(run, found, world=2, fault="trial@6:1=kill")
    assert read_sizes(RunDir(found / "run")) is None
    assert KILLED in trainers.run(run, found, world=2, fault="step@5:0=kill")
    kept = read_sizes(RunDir(found / "run"))
    assert kept is not None
    assert (kept.micro_batch, kept.sure) == (4, True)
    assert trainers.run(run, found, world=2, fault="trial=kill") == [0, 0], "it was tried again"
    assert trainers.run(file(written, train={"micro_batch": 4}, **hungry), written, world=2) == [0, 0]
    same(found / "run", written / "run")
    assert [(one["rank"], one["samples"]) for one in kept.refused] == [(1, 12), (1, 6)]
    assert all("can't allocate memory" in one["why"] for one in kept.refused)
    summary = json.loads((found / "run" / "summary.json").read_text())
    assert summary["micro_batch"] == 4
    assert len(summary["did_not_fit"]) == 2
    said = "".join(rank.text() for rank in trainers.started)
    assert "4 at a time (train.micro_batch: auto); too many: 12 on rank 1, 6 on rank 1" in said


def test_in_the_midst_of_a_training_both_ranks_shrink_and_none_waits(trainers: Zygote, tmp_path: Path) -> None:
    """Rank 1 runs out in a forward pass, with less in a backward pass while rank 0 is in the all-reduce, then evaluating."""
    found, written = tmp_path / "found", tmp_path / "written"
    run, folder = file(found, forward=6, backward=4, evaluation=5), RunDir(found / "run")
    sizes: list[Any] = []
    for _ in range(3):
        ranks = trainers.start(run, found, world=2)
        assert [rank.wait(timeout=25) for rank in ranks] == [1, 75]
        marker, kept = folder.marker(), read_sizes(folder)
        assert marker is not None
        assert kept is not None
        assert (marker.state, marker.code, marker.again) == ("REQUEUE", 75, True)
        assert f"of {kept.refused[-1]['samples']} does not fit the memory of rank 1" in marker.reason
        assert len([line for rank in ranks for line in rank.text().splitlines() if line.startswith("graft: a ")]) == 1
        sizes.append((kept.micro_batch, kept.evaluation, kept.refused[-1]["step"]))
    assert [found[:2] for found in sizes] == [(6, None), (4, None), (4, 4)]
    (first, second, third) = (found[2] for found in sizes)
    assert first > 2
    assert second == first - first % 2, "it went on from the checkpoint before the step that failed"
    assert third == 6
    assert trainers.run(run, found, world=2) == [0, 0]
    assert trainers.run(file(written, train={"micro_batch": 4}), written, world=2) == [0, 0]
    ours, theirs = points(found / "run"), points(written / "run")
    assert len(ours) == len(theirs)
    for one, other in zip(ours, theirs, strict=True):
        assert one == pytest.approx(other, abs=1e-6)
    ends = [event["state"] for event in read_points(folder.attempts) if event["event"] == "end"]
    assert ends == ["REQUEUE", "REQUEUE", "REQUEUE", "DONE"]


def test_where_ranks_meet_in_every_pass_the_attempt_ends_as_well(trainers: Zygote, tmp_path: Path) -> None:
    """Nothing is tried before, though memory is limited; rank 0 waits in a gathering of FSDP."""
    args: dict[str, Any] = {"forward": 6, "address_space": 4096 * MIB}
    found, written = tmp_path / "found", tmp_path / "written"
    train: dict[str, Any] = {"steps": 6, "ema": None}
    run, more = file(found, train=train, **args), ("parallel.kind=fsdp",)
    ranks = trainers.start(run, found, world=2, args=more)
    assert [rank.wait(timeout=25) for rank in ranks] == [1, 75]
    assert (
        "which the first step tries: under parallel.kind: fsdp the ranks meet"
        in (found / "run" / "log" / "rank-00000.log").read_text()
    )
    assert trainers.run(run, found, world=2, args=more) == [0, 0]
    assert trainers.run(file(written, train={**train, "micro_batch": 6}, **args), written, world=2, args=more) == [0, 0]
    for one, other in zip(points(found / "run"), points(written / "run"), strict=True):
        assert one == pytest.approx(other, abs=1e-6)


def test_a_micro_batch_that_is_written_out_ends_with_what_to_write(trainers: Zygote, tmp_path: Path) -> None:
    run = file(tmp_path, train={"micro_batch": 6}, backward=4)
    assert trainers.run(run, tmp_path, world=2) == [1, 1]
    marker = RunDir(tmp_path / "run").marker()
    assert marker is not None
    assert marker.state == "FAILED"
    assert "too little memory for micro-batches of 6" in marker.reason
    assert "train.micro_batch=auto, which finds what fits, or train.micro_batch=3" in marker.reason
