"""P3, P4, P8, P9, P10, P11, P12: signals, dead helpers and silent ranks."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import psutil
import pytest

from tests.trainers import ROOT, Zygote, points, run_file, same, step_of, wait_for_step
from trainer.rundir import RunDir

WORKERS = {"data": {"workers": 2}}
LONG = {"train": {"steps": 4000}, "evaluate": {"every": "100 epochs"}, "checkpoint": {"every": "1 h"}}


def descendants(pid: int) -> list[psutil.Process]:
    return psutil.Process(pid).children(recursive=True)


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGUSR1])
def test_a_signal_saves_at_the_current_step(trainers: Zygote, references: dict[int, Path], tmp_path: Path, number: int) -> None:
    fault = f"step@24={'term' if number == signal.SIGTERM else 'usr'}"
    assert trainers.run(run_file(tmp_path, **WORKERS), tmp_path, fault=fault) == [75]
    marker = RunDir(tmp_path / "run").marker()
    assert marker is not None
    assert (marker.state, marker.step, marker.code) == ("REQUEUE", 24, 75)
    assert step_of(tmp_path / "run") == 24
    assert trainers.run(run_file(tmp_path, **WORKERS), tmp_path) == [0]
    same(tmp_path / "run", references[1])


def test_a_signal_to_one_rank_of_two_stops_both_at_one_step(
    trainers: Zygote, references: dict[int, Path], tmp_path: Path
) -> None:
    assert trainers.run(run_file(tmp_path, **WORKERS), tmp_path, world=2, fault="step@24:1=term") == [0, 0]
    marker = RunDir(tmp_path / "run").marker()
    assert marker is not None
    assert marker.state == "REQUEUE"
    assert marker.step in (24, 25)  # the others hear of it with the next step
    assert step_of(tmp_path / "run") == marker.step
    assert trainers.run(run_file(tmp_path, **WORKERS), tmp_path, world=2) == [0, 0]
    same(tmp_path / "run", references[2])


def test_a_signal_costs_no_further_long_step(trainers: Zygote, tmp_path: Path) -> None:
    """Where steps take long, the ranks wait for each other's wishes: both stop at the step in which one got the signal."""
    model = {"source": f"python:{ROOT}/tests/network.py:small", "args": {"slow": 0.4}}
    assert trainers.run(run_file(tmp_path, model=model, **LONG), tmp_path, world=2, fault="step@4:1=term") == [0, 0]
    marker = RunDir(tmp_path / "run").marker()
    assert marker is not None
    assert (marker.state, marker.step) == ("REQUEUE", 4)


def test_the_whole_group_gets_the_signal_and_loader_workers_ignore_it(trainers: Zygote, tmp_path: Path) -> None:
    (rank,) = trainers.start(run_file(tmp_path, **WORKERS, **{**LONG, "train": {"steps": 4000}}), tmp_path)
    wait_for_step(tmp_path / "run", 30)
    os.killpg(rank.pid, signal.SIGTERM)
    assert rank.wait() == 75
    assert step_of(tmp_path / "run") >= 30
    assert "Traceback" not in rank.text()


def test_a_second_sigterm_in_the_save_corrupts_nothing(trainers: Zygote, references: dict[int, Path], tmp_path: Path) -> None:
    assert trainers.run(run_file(tmp_path), tmp_path, fault="step@24=term,save-manifest@24=term") == [75]
    assert step_of(tmp_path / "run") == 24
    assert trainers.run(run_file(tmp_path), tmp_path) == [0]
    same(tmp_path / "run", references[1])


def test_a_second_ctrl_c_ends_at_once_and_the_last_checkpoint_stays(
    trainers: Zygote, references: dict[int, Path], tmp_path: Path
) -> None:
    assert trainers.run(run_file(tmp_path), tmp_path, fault="step@24=int,save-manifest@24=int") == [130]
    assert step_of(tmp_path / "run") in (21, 24)  # the thread that writes may be done before the process is
    assert trainers.run(run_file(tmp_path), tmp_path) == [0]
    same(tmp_path / "run", references[1])


def test_a_killed_loader_worker_is_named_and_nothing_is_lost(trainers: Zygote, tmp_path: Path) -> None:
    sections = {**WORKERS, "train": {"steps": 600}, "evaluate": {"every": "500 steps"}, "checkpoint": {"every": "100 steps"}}
    for name in ("straight", "broken"):
        (tmp_path / name).mkdir()
    run = run_file(tmp_path, **sections)
    assert trainers.run(run, tmp_path / "straight") == [0]
    (rank,) = trainers.start(run, tmp_path / "broken")
    wait_for_step(tmp_path / "broken" / "run", 10)
    workers = descendants(rank.pid)
    assert workers
    workers[0].kill()
    assert rank.wait() == 1
    said = rank.text()
    assert "loader" in said
    assert str(workers[0].pid) in said or "SIGKILL" in said or "killed" in said
    assert "Traceback" not in said
    assert all(not worker.is_running() or worker.status() == psutil.STATUS_ZOMBIE for worker in workers)
    assert trainers.run(run, tmp_path / "broken") == [0]
    same(tmp_path / "broken" / "run", tmp_path / "straight" / "run")


def test_a_stopped_rank_is_named_and_nobody_waits_for_ever(trainers: Zygote, tmp_path: Path) -> None:
    sections = {"train": {"steps": 4000}, "parallel": {"timeout": 5}}
    ranks = trainers.start(run_file(tmp_path, **sections), tmp_path, world=2, fault="step@20:1=stop")
    began = time.monotonic()
    assert ranks[0].wait(timeout=40) == 1
    assert time.monotonic() - began < 30
    said = ranks[0].text()
    assert f"rank 1 (process {ranks[1].pid} on" in said
    assert "no heartbeat" in said
    marker = RunDir(tmp_path / "run").marker()
    assert marker is not None
    assert marker.state == "FAILED"
    assert "rank 1" in marker.reason


def test_the_same_crash_three_times_is_not_tried_again(trainers: Zygote, tmp_path: Path) -> None:
    run = run_file(tmp_path, model={"args": {"nan_rank": 0, "nan_at": 0, "nan_for": 1000}}, train={"max_skipped": 2})
    assert [trainers.run(run, tmp_path)[0] for _ in range(3)] == [1, 1, 1]
    assert trainers.run(run, tmp_path) == [3]
    said = trainers.started[-1].text()
    assert "the last 3 attempts" in said
    assert "--retry" in said
    assert trainers.run(run, tmp_path, args=("--retry",)) == [1]


def launch(run: Path, runs: Path, *arguments: str) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [sys.executable, "-m", "launcher", "train", str(run), "--runs", str(runs), *arguments],
        stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, cwd=ROOT,
    )  # fmt: skip


@pytest.mark.timeout(240)
def test_a_killed_launcher_takes_the_ranks_with_it(trainers: Zygote, references: dict[int, Path], tmp_path: Path) -> None:
    """Also the way of a run over `graft train` with two ranks: killed, started again, stopped by USR1, started again."""
    run = run_file(tmp_path, parallel={"processes": 2})
    slow = run_file(tmp_path / "slow", parallel={"processes": 2}, train={"steps": 4000}, **WORKERS)
    started = launch(slow, tmp_path / "slow")
    wait_for_step(tmp_path / "slow" / "run", 20, rank=1, timeout=120)
    below = descendants(started.pid)
    assert len(below) >= 3  # the agent and two ranks at least
    started.kill()
    deadline = time.monotonic() + 2
    while time.monotonic() < deadline and any(p.is_running() and p.status() != psutil.STATUS_ZOMBIE for p in below):
        time.sleep(0.05)
    assert not [p for p in below if p.is_running() and p.status() != psutil.STATUS_ZOMBIE]
    started.communicate()

    again = launch(slow, tmp_path / "slow")
    step = step_of(tmp_path / "slow" / "run")
    wait_for_step(tmp_path / "slow" / "run", step + 20, rank=1, timeout=120)
    again.send_signal(signal.SIGUSR1)
    said, _ = again.communicate(timeout=60)
    assert again.returncode == 75, said
    marker = RunDir(tmp_path / "slow" / "run").marker()
    assert marker is not None
    assert marker.state == "REQUEUE"
    assert step_of(tmp_path / "slow" / "run") == marker.step

    whole = launch(run, tmp_path)
    said, _ = whole.communicate(timeout=120)
    assert whole.returncode == 0, said
    same(tmp_path / "run", references[2])
    events = [json.loads(line) for line in (tmp_path / "slow" / "run" / "attempts.jsonl").read_text().splitlines()]
    assert [e["event"] for e in events] == ["start", "start", "end"]
    samples = [p["samples"] for p in points(tmp_path / "slow" / "run") if "train/loss" in p]
    assert samples == list(range(24, 24 * len(samples) + 1, 24))  # every point once
