"""graft cancel, resume and logs -f on runs that really train on this machine."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import psutil
import pytest

from tests.trainers import ROOT, run_file
from trainer.rundir import RunDir
from trainer.rundir.lease import Holder, read_holder

pytestmark = pytest.mark.timeout(180)


class Work:
    """A folder with runs, and the commands started there."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.rundir = RunDir(folder / "runs" / "run")
        self.started: list[subprocess.Popen[str]] = []

    def start(self, *arguments: str) -> subprocess.Popen[str]:
        self.started.append(subprocess.Popen(
            [sys.executable, "-m", "launcher", *arguments], cwd=self.folder, text=True, stdout=subprocess.PIPE,
            stderr=subprocess.PIPE, env={**os.environ, "PYTHONPATH": str(ROOT)},
        ))  # fmt: skip
        return self.started[-1]

    def graft(self, *arguments: str, code: int = 0) -> tuple[str, str]:
        process = self.start(*arguments)
        out, err = process.communicate(timeout=90)
        assert process.returncode == code, f"{out}\n{err}"
        return out, err

    def status(self) -> dict[str, Any]:
        found: dict[str, Any] = json.loads(self.graft("status", "run", "--json")[0])
        return found


@pytest.fixture
def work(tmp_path: Path) -> Iterator[Work]:
    made = Work(tmp_path)
    yield made
    for process in made.started:
        if process.poll() is None:
            process.kill()
        process.communicate(timeout=20)


def until(condition: Callable[[], bool], seconds: float = 60.0) -> None:
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, "it did not come true in time"
        time.sleep(0.2)


def test_a_run_is_cancelled_saved_resumed_and_followed(work: Work) -> None:
    run_file(work.folder, train={"steps": 1_000_000}, checkpoint={"every": "10000 steps"}, evaluate={"every": "10000 steps"})
    training = work.start("train", "run.yaml", "--processes", "1")
    until(lambda: work.rundir.metrics.exists() and work.rundir.metrics.stat().st_size > 4000)
    found = work.status()
    assert (found["state"], len(found["ranks"])) == ("running", 1)
    assert found["total_samples"] == 24_000_000
    assert found["rate"] > 0
    assert found["eta"] > 0
    follower = work.start("logs", "run", "-f")
    out, _ = work.graft("cancel", "run")
    assert "run: told rank 0 to save and stop" in out
    saved = re.search(r"run: stopped; graft resume run goes on from step ([\d,]+)", out)
    assert saved
    step = int(saved[1].replace(",", ""))
    assert step >= found["step"]
    assert training.wait(timeout=30) == 75
    lines, said = follower.communicate(timeout=30)
    assert "graft" in lines
    assert follower.returncode == 75
    assert "graft: run is stopped: stopped by SIGTERM" in said
    assert "is not running, it is stopped" in work.graft("cancel", "run", code=2)[1]

    resumed = work.start("resume", "run")
    until(lambda: work.status()["state"] == "running" and work.status()["step"] > step)
    assert f"goes on from step {step:,}" in work.graft("plan", "run", "--no-memory")[0]
    assert "run: is running already" in work.graft("resume", "run")[0]
    assert [bool(a.get("state")) for a in work.status()["attempts"]] == [True, False]
    work.graft("cancel", "run", "runs/run")  # once, though named twice
    assert resumed.wait(timeout=30) == 75
    work.rundir.mark("DONE", "all steps", 0, step)
    assert "run: is done already" in work.graft("resume", "run")[0]


def test_every_rank_here_is_told_and_waited_for(work: Work) -> None:
    run_file(work.folder)
    work.rundir.create()
    (work.folder / "run.yaml").replace(work.rundir.config)
    work.rundir.ranks.mkdir()
    ranks = [subprocess.Popen([sys.executable, "-c", _RANK, str(work.rundir.path), str(rank)]) for rank in (0, 1)]
    try:
        until(lambda: work.rundir.lease.exists() and len(list(work.rundir.ranks.glob("rank-*.json"))) == 2)
        (work.rundir.logs / "rank-00000.log").write_text("one\ntwo\n")
        (work.rundir.logs / "rank-00001.log").write_text("three\nhalf a li")
        assert work.graft("logs", "run", "--all")[0] == "0| one\n0| two\n1| three\n"
        out, _ = work.graft("cancel", "run")
        assert out.splitlines() == ["run: told rank 0, rank 1 to save and stop", "run: stopped"]
        assert [rank.wait(timeout=10) for rank in ranks] == [0, 0]
    finally:
        for rank in ranks:
            rank.kill()
            rank.wait()


# What a rank shows and does of all that a trainer does: it registers, holds the lease (rank 0), and marks the folder when told.
_RANK = """
import signal, sys, time
from pathlib import Path
from trainer.rundir import Lease, RunDir
from trainer.watch import Heartbeat
folder, rank, told = RunDir(Path(sys.argv[1])), int(sys.argv[2]), []
signal.signal(signal.SIGTERM, lambda number, frame: told.append(number))
lease = Lease(folder.lease) if rank == 0 else None
heart = Heartbeat(folder.ranks, rank)
while not told:
    time.sleep(0.05)
if lease:
    time.sleep(1)
    folder.mark("REQUEUE", "stopped by SIGTERM", 75, 3)
    lease.release()
heart.close()
"""


def test_a_process_that_only_has_the_number_of_a_rank_is_left_alone(work: Work) -> None:
    run_file(work.folder)
    bystander = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(60)"])
    try:
        work.rundir.create()
        (work.folder / "run.yaml").replace(work.rundir.config)
        boot = Path("/proc/sys/kernel/random/boot_id").read_text().strip()
        started = psutil.Process(bystander.pid).create_time()
        holder = Holder(os.uname().nodename, boot, bystander.pid, started - 60, "token", 0, "earlier", "trainer")
        work.rundir.lease.write_text(json.dumps(asdict(holder)))
        work.rundir.ranks.mkdir()
        rank = {"host": holder.host, "pid": bystander.pid, "started": started - 60, "rank": 0, "step": 3}
        (work.rundir.ranks / "rank-00000.json").write_text(json.dumps(rank))
        assert "is not running, it is killed" in work.graft("cancel", "run", code=2)[1]
        elsewhere = replace(holder, host="node99")
        work.rundir.lease.write_text(json.dumps(asdict(elsewhere)))
        assert "runs on node99, not here" in work.graft("cancel", "run", code=2)[1]
        assert read_holder(work.rundir.lease) == elsewhere
        assert bystander.poll() is None
        assert "no run of that name" in work.graft("cancel", "run", "other", code=2)[1]
    finally:
        bystander.kill()
        bystander.wait()
