"""What graft says of runs that a real Slurm holds, and how it stops them."""

from __future__ import annotations

import json
import os
import shlex
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from launcher.queue import Queue
from tests.cluster.daemons import TestCluster
from tests.unit.folders import RUN, bare
from trainer.rundir import RunDir

ROOT = Path(__file__).resolve().parents[2]
pytestmark = pytest.mark.timeout(120)


class Site:
    """A folder with runs, on the login node of the cluster."""

    def __init__(self, cluster: TestCluster, folder: Path) -> None:
        self.cluster, self.folder = cluster, folder
        self.environment = {**cluster.environment, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}

    def graft(self, *arguments: str, code: int = 0) -> subprocess.CompletedProcess[str]:
        done = subprocess.run(
            [sys.executable, "-m", "launcher", *arguments], cwd=self.folder, env=self.environment, capture_output=True, text=True,
            timeout=60, check=False,
        )  # fmt: skip
        assert done.returncode == code, f"{done.stdout}\n{done.stderr}"
        assert "Traceback" not in done.stderr
        return done

    def status(self, name: str) -> dict[str, Any]:
        found: dict[str, Any] = json.loads(self.graft("status", name, "--json").stdout)
        return found

    def until(self, name: str, wanted: Callable[[dict[str, Any]], bool], timeout: float = 30) -> dict[str, Any]:
        deadline = time.monotonic() + timeout
        while not wanted(found := self.status(name)):
            assert time.monotonic() < deadline, f"{found}\n{self.cluster.logs()}"
            time.sleep(0.2)
        return found

    def run(self, name: str) -> RunDir:
        """A run folder that nobody has trained."""
        return bare(self.folder, name, RUN + "train: {steps: 10000, global_batch: 64}\n")

    def submit(self, *rundirs: RunDir, options: tuple[str, ...] = ()) -> str:
        """Give runs to Slurm, several as one array; returns the job id."""
        rundirs[0].logs.mkdir(exist_ok=True)
        words = " ".join(shlex.quote(str(rundir.path)) for rundir in rundirs)
        script = self.folder / "job.sh"
        script.write_text(
            f"#!/bin/bash\nfolders=({words})\n"
            f'exec {shlex.quote(sys.executable)} -m tests.cluster.pretend "${{folders[${{SLURM_ARRAY_TASK_ID:-0}}]}}"\n'
        )
        log = f"{rundirs[0].logs}/slurm-%j.out" if len(rundirs) == 1 else f"{self.folder}/sweep-%A_%a.out"
        array = [f"--array=0-{len(rundirs) - 1}%2"] if len(rundirs) > 1 else []
        done = subprocess.run(
            ["sbatch", "--parsable", f"--output={log}", "--time=10:00", *array, *options, str(script)], check=True,
            cwd=ROOT, env=self.environment, capture_output=True, text=True,
        )  # fmt: skip
        job = done.stdout.strip()
        for number, rundir in enumerate(rundirs):
            name = f"{job}_{number}" if array else job
            if rundir.read_json(rundir.job).get("id") is None:
                rundir.job.write_text(json.dumps({"id": name, "cluster": None, "submitted": time.time()}))
        return job


@pytest.fixture
def site(cluster: TestCluster, tmp_path: Path) -> Site:
    return Site(cluster, tmp_path)


def test_a_job_that_waits_says_why_and_since_when_and_leaves_the_queue(site: Site) -> None:
    site.cluster.run(
        "sbatch", "--nodes=4", "--exclusive", "--time=10:00", "--output=/dev/null", "--wrap=sleep 600", "--job-name=x|y\nz"
    )
    rundir = site.run("pets")
    job = site.submit(rundir)
    found = site.until("pets", lambda s: s["state"] == "pending" and bool(s["start"]))
    assert found["job"] == job
    assert "busy" in found["reason"] or "higher priority" in found["reason"]
    assert 0 < found["start"] - time.time() < 700, "the job before it ends within ten minutes"
    text = site.graft("status", "pets").stdout
    assert "expected to start" in text
    assert "graft cancel pets" in text
    table = site.graft("runs").stdout
    assert "pending" in table
    assert "expected to start" in table
    said = site.graft("cancel", "pets").stdout
    assert "pets: cancelled" in said
    assert site.cluster.state(job) == "CANCELLED"
    assert site.status("pets")["reason"] == f"job {job} was cancelled before it started"
    assert "not running, it is cancelled" in site.graft("cancel", "pets", code=2).stderr


def test_a_run_that_trains_shows_its_pace_saves_when_cancelled_and_is_not_queued_again(site: Site) -> None:
    rundir = site.run("pets")
    job = site.submit(rundir)
    found = site.until("pets", lambda s: s["state"] == "running" and s["step"] > 5)
    assert found["nodes"] == "node1"
    assert found["total_samples"] == 640_000
    assert 300 < found["rate"] < 700, "64 samples in a tenth of a second"
    assert found["eta"] == pytest.approx((640_000 - found["samples"]) / found["rate"])
    assert 500 < found["left"] <= 600
    assert [(r["rank"], r["age"] < 5) for r in found["ranks"]] == [(0, True)]
    assert "samples/s" in site.graft("status", "pets").stdout
    said = site.graft("cancel", "pets").stdout
    assert f"cancelling job {job} (on node1); it saves first" in said
    assert "graft resume pets goes on from step" in said
    marker = rundir.marker()
    assert marker is not None
    assert (marker.state, marker.reason) == ("REQUEUE", "stopped by SIGTERM")
    assert site.status("pets")["state"] == "cancelled"
    assert site.cluster.state(job) == "CANCELLED"
    assert site.graft("logs", "pets", "-f", "--job", code=75).stderr.strip().startswith("graft: pets is cancelled")


def test_a_run_that_was_queued_again_counts_it_and_followers_wait_for_it(site: Site) -> None:
    rundir = site.run("pets")
    job = site.submit(rundir)
    site.until("pets", lambda s: s["state"] == "running" and s["step"] > 0)
    (rundir.logs / "rank-00000.log").write_text("hello\n")
    follower = subprocess.Popen(
        [sys.executable, "-m", "launcher", "logs", "pets", "-f"], cwd=site.folder, env=site.environment, text=True,
        stdout=subprocess.PIPE, stderr=subprocess.PIPE,
    )  # fmt: skip
    try:
        site.cluster.run("scancel", "--batch", "--signal=USR1", job)
        found = site.until("pets", lambda s: s["state"] == "pending")
        assert found["restarts"] == 1
        assert "queued again 1 time" in site.graft("status", "pets").stdout
        assert "pending (requeued 1x)" in site.graft("runs").stdout
        time.sleep(3)
        assert follower.poll() is None, "the run goes on"
        assert "cancelled" in site.graft("cancel", "pets").stdout
        out, err = follower.communicate(timeout=40)
        assert (out, follower.returncode) == ("hello\n", 75)
        assert "pets is cancelled" in err
    finally:
        follower.kill()
        follower.communicate()


def test_members_of_an_array_are_told_apart_and_cancelled_one_by_one(site: Site) -> None:
    rundirs = [site.run(f"member-{number}") for number in range(5)]
    job = site.submit(*rundirs)
    site.until("member-1", lambda s: s["state"] == "running" and s["step"] > 0)
    site.until("member-0", lambda s: s["state"] == "running" and s["step"] > 0)
    listed = {run["name"]: run for run in json.loads(site.graft("runs", "--json").stdout)}
    assert [listed[f"member-{n}"]["state"] for n in range(5)] == ["running", "running", "pending", "pending", "pending"]
    assert "JobArrayTaskLimit" in listed["member-4"]["reason"]
    said = site.graft("cancel", "member-4", "member-0").stdout
    assert "member-4: cancelled" in said
    assert "member-0: cancelled" in said
    states = {run["name"]: run["state"] for run in json.loads(site.graft("runs", "--json").stdout)}
    assert states["member-4"] == states["member-0"] == "cancelled"
    assert states["member-1"] == "running"
    site.cluster.run("scancel", f"{job}_3")  # by hand: nothing notes it, and Slurm forgets it at once
    assert site.status("member-3")["state"] == "cancelled"
    assert site.cluster.state(f"{job}_1") == "RUNNING"


def test_a_job_that_failed_before_any_rank_points_to_what_it_wrote(site: Site) -> None:
    rundir = site.run("pets")
    (rundir.path / "fail").touch()
    job = site.submit(rundir)
    found = site.until("pets", lambda s: s["state"] == "failed")
    assert found["reason"] == f"job {job} failed; graft logs pets --job shows what it said"
    assert site.graft("logs", "pets", "--job").stdout == "the site file is broken\n"
    assert "is not running" in site.graft("cancel", "pets", code=2).stderr


def test_one_question_is_asked_for_all_runs(site: Site, monkeypatch: pytest.MonkeyPatch) -> None:
    rundirs = [site.run(f"member-{number}") for number in range(4)]
    site.submit(*rundirs)
    for name, value in site.environment.items():
        monkeypatch.setenv(name, value)
    for name in set(os.environ) - set(site.environment):
        monkeypatch.delenv(name)
    monkeypatch.setenv("SQUEUE_STATES", "COMPLETED")
    monkeypatch.setenv("SLURM_TIME_FORMAT", "relative")
    from launcher.runs import every

    queue = Queue(every=60)
    assert len(every(site.folder / "runs", queue)) == 4
    assert every(site.folder / "runs", queue)[0].state != "killed"
    assert (queue.asked, queue.problem) == (1, "")


def test_a_run_whose_controller_is_away_is_shown_by_its_folder(site: Site) -> None:
    rundir = site.run("pets")
    site.submit(rundir)
    site.until("pets", lambda s: s["state"] == "running" and s["step"] > 0)
    site.cluster.kill("slurmctld", signal.SIGTERM)
    try:
        began = time.monotonic()
        found = site.graft("runs")
        assert "running" in found.stdout
        assert "squeue refused" in found.stderr
        assert time.monotonic() - began < 20
    finally:
        site.cluster.start_controller()
    site.until("pets", lambda s: s["nodes"] == "node1")
