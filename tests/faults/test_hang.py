"""C1, C2, P11: a rank that hangs is named with its stack and the run ends; a slow rank is reported; slow is not hung."""

from __future__ import annotations

import signal
import socket
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import psutil
import pytest

from tests.trainers import ROOT, Rank, Zygote, run_file, wait_for_step
from trainer.rundir import Marker, RunDir, read_points

TIMEOUT = 5
BROKEN = ROOT / "tests" / "broken.py"


def hanging(rank: int, where: str) -> dict[str, Any]:
    return {"model": {"source": f"python:{BROKEN}:hanging", "args": {"rank": rank, "where": where}}}


def slow(**args: Any) -> dict[str, Any]:
    return {
        "model": {"args": {"slow": 0.2, **args}}, "parallel": {"timeout": 60}, "train": {"steps": 40},
        "evaluate": {"every": "100 epochs"}, "checkpoint": {"every": "1 h"},
    }  # fmt: skip


@dataclass
class Case:
    """A run that was started, and how it ended."""

    folder: RunDir
    ranks: list[Rank]

    def end(self) -> Marker:
        """Wait for all ranks; the marker FAILED."""
        assert [rank.wait(timeout=40) for rank in self.ranks] == [1] * len(self.ranks)
        marker = self.folder.marker()
        assert marker is not None
        assert (marker.state, marker.code) == ("FAILED", 1)
        return marker

    def log(self, rank: int) -> str:
        return (self.folder.logs / f"rank-{rank:05d}.log").read_text()


CASES: dict[str, tuple[int, dict[str, Any], dict[str, Any]]] = {
    "forward": (2, hanging(1, "forward"), {"env": {"SLURMD_NODENAME": "node7"}}),
    "backward": (2, hanging(0, "backward"), {}),
    "lock": (2, hanging(1, "lock"), {}),
    "alone": (1, hanging(0, "forward"), {}),
    "alone-lock": (1, hanging(0, "lock"), {}),
    "main-stopped": (2, {"train": {"steps": 4000}}, {"fault": "step@20:0=stop"}),
    "worker": (2, {"train": {"steps": 40000}, "data": {"workers": 1}, "evaluate": {"every": "9000 epochs"},
                   "checkpoint": {"every": "1 h"}}, {}),
}  # fmt: skip


@pytest.fixture(scope="module")
def cases(zygote: Zygote, tmp_path_factory: pytest.TempPathFactory) -> Iterator[dict[str, Case]]:
    """All of them hang at once, which costs no processor time."""
    started = {}
    for name, (world, sections, more) in CASES.items():
        folder = tmp_path_factory.mktemp(name)
        run = run_file(folder, **{"parallel": {"timeout": TIMEOUT}, **sections})
        started[name] = Case(RunDir(folder / "run"), zygote.start(run, folder, world=world, **more))
    yield started
    zygote.clean()


def test_a_rank_that_hangs_in_its_forward_pass(cases: dict[str, Case]) -> None:
    case = cases["forward"]
    reason = case.end().reason
    named = f"rank 1 (process {case.ranks[1].pid} on {socket.gethostname()}, Slurm's node7) hangs at step 3 in stage 'forward'"
    assert reason.startswith(f"{named}: tests/broken.py:")
    assert "in forward" in reason
    assert "rank 0" not in reason
    assert sum(rank.text().count(reason) for rank in case.ranks) == 1  # said once
    for rank in (0, 1):
        assert "the Python stacks of this process" in case.log(rank)
        assert "in train" in case.log(rank)
    events = read_points(case.folder.attempts)
    assert [(e["event"], e.get("reason")) for e in events] == [("start", None), ("end", reason)]


def test_a_rank_that_hangs_in_its_backward_pass(cases: dict[str, Case]) -> None:
    """Both ranks are in their backward pass: the stacks tell who waits for whom."""
    reason = cases["backward"].end().reason
    assert reason.startswith(f"rank 0 (process {cases['backward'].ranks[0].pid} on ")
    assert "hangs at step 3 in stage 'backward': tests/broken.py:" in reason
    assert "in backward" in reason
    assert "rank 1" not in reason


def test_a_rank_that_holds_the_interpreter_lock(cases: dict[str, Case]) -> None:
    """Its heart cannot beat, and its stack is written all the same. Its launcher would kill it; here the test does."""
    case = cases["lock"]
    assert case.ranks[0].wait(timeout=40) == 1
    marker = case.folder.marker()
    assert marker is not None
    assert marker.reason.startswith(f"rank 1 (process {case.ranks[1].pid} on ")
    assert "no heartbeat" in marker.reason
    assert "tests/broken.py:" in marker.reason


@pytest.mark.parametrize("name", ["alone", "alone-lock"])
def test_a_world_of_one(cases: dict[str, Case], name: str) -> None:
    case = cases[name]
    if name == "alone":
        reason = case.end().reason
        assert "rank 0" in reason
        assert "in stage 'forward': tests/broken.py:" in reason
    else:  # nothing of Python's runs there any more: the stacks are left
        assert case.ranks[0].wait(timeout=40) == 1
        assert "Timeout" in case.log(0)
        assert 'broken.py", line' in case.log(0)


def test_a_stopped_rank_0_is_named_by_the_next(cases: dict[str, Case]) -> None:
    case = cases["main-stopped"]
    assert case.ranks[1].wait(timeout=40) == 1
    marker = case.folder.marker()
    assert marker is not None
    assert marker.reason.startswith(f"rank 0 (process {case.ranks[0].pid} on ")
    assert "no heartbeat" in marker.reason
    assert "process is stopped" in marker.reason


def test_a_loader_worker_that_hangs(cases: dict[str, Case]) -> None:
    case = cases["worker"]
    wait_for_step(case.folder.path, 20)
    workers = psutil.Process(case.ranks[1].pid).children()
    assert workers
    for worker in workers:
        worker.send_signal(signal.SIGSTOP)
    reason = case.end().reason
    assert reason.startswith(f"rank 1 (process {case.ranks[1].pid} on ")
    assert "in stage 'data'" in reason
    assert "rank 0" not in reason
    assert psutil.wait_procs(workers, timeout=5)[1] == []


def test_a_long_evaluation_and_a_pause_are_no_hang(trainers: Zygote, tmp_path: Path) -> None:
    """Rank 1 waits longer than the limit for rank 0, which takes a second a batch; another run is suspended (Ctrl-Z)."""
    model = {"source": f"python:{BROKEN}:hanging", "args": {"rank": 0, "where": "", "evaluation": 0.9}}
    long = {"parallel": {"timeout": 2}, "evaluate": {"batch": 12, "every": "9000 epochs"}}
    evaluated = trainers.start(run_file(tmp_path, model=model, train={"steps": 2}, **long), tmp_path, world=2)
    other = tmp_path / "other"
    (paused,) = trainers.start(run_file(other, train={"steps": 40000}, **long), other)

    before = wait_for_step(other / "run", 20)
    paused.send(signal.SIGTSTP)
    time.sleep(4)
    assert psutil.Process(paused.pid).status() == psutil.STATUS_STOPPED
    paused.send(signal.SIGCONT)
    wait_for_step(other / "run", before["step"] + 50)
    paused.send(signal.SIGTERM)
    assert paused.wait() == 75, paused.text()

    assert [rank.wait() for rank in evaluated] == [0, 0], evaluated[0].text()
    assert "nothing happened for 2 s" in (tmp_path / "run" / "log" / "rank-00001.log").read_text()
    assert "nothing happened" not in (tmp_path / "run" / "log" / "rank-00000.log").read_text()
    assert list((tmp_path / "run" / "log" / "ranks").iterdir()) == []


def test_a_slow_rank_is_reported_once_and_equal_ranks_are_not(trainers: Zygote, tmp_path: Path) -> None:
    shorter = {"trainer.straggler.COMPARE_EVERY": 0.5}
    found = {}
    for name, args in {"one": {"slow_rank": 1}, "both": {}}.items():
        run = run_file(tmp_path / name, **slow(**args))
        found[name] = trainers.start(run, tmp_path / name, world=2, constants=shorter)
    for ranks in found.values():
        assert [rank.wait() for rank in ranks] == [0, 0]
    events = read_points(tmp_path / "one" / "run" / "attempts.jsonl")
    assert [e["event"] for e in events] == ["start", "straggler", "end"]
    told = events[1]
    assert (told["rank"], told["host"], told["attempt"]) == (1, socket.gethostname(), 1)
    assert 0.2 <= told["seconds"] < 0.4
    assert told["median"] < told["seconds"] - 0.1
    assert 0 < told["step"] <= 40
    said = found["one"][0].text()
    assert f"rank 1 (process {found['one'][1].pid} on {socket.gethostname()}) is slow: 0.2" in said
    assert [e["event"] for e in read_points(tmp_path / "both" / "run" / "attempts.jsonl")] == ["start", "end"]


@pytest.mark.parametrize(("kind", "broken"), [("ecc", True), ("access", False)])
def test_broken_hardware_is_noted_and_a_bug_is_not(trainers: Zygote, tmp_path: Path, kind: str, broken: bool) -> None:
    model = {"source": f"python:{BROKEN}:failing", "args": {"rank": 0, "kind": kind}}
    env = {"SLURMD_NODENAME": "node3", "SLURM_JOB_ID": "77", "SLURM_RESTART_COUNT": "2"}
    (rank,) = trainers.start(run_file(tmp_path, model=model), tmp_path, env=env)
    assert rank.wait() == 1
    noted = read_points(RunDir(tmp_path / "run").bad_nodes)
    assert [(e["node"], e["job"], e["restart"]) for e in noted] == ([("node3", "77", 2)] if broken else [])
    assert ("the hardware of node3 is broken" in rank.text()) is broken
