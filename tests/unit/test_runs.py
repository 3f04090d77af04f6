"""Where a run stands: from its folder, and from what Slurm says beside it."""

from __future__ import annotations

import json
import os
import time
from pathlib import Path
from typing import Any

import pytest

from launcher.detail import detail
from launcher.runs import find, status
from launcher.table import runs as table
from tests.unit.folders import bare
from tests.unit.site import Site
from trainer.config import UserError
from trainer.rundir import Lease, RunDir


@pytest.fixture
def site(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Site:
    made = Site(tmp_path)
    monkeypatch.setenv("PATH", str(made.bin))
    monkeypatch.chdir(tmp_path)
    return made


def test_a_job_that_waits(site: Site) -> None:
    site.queue("PENDING", "Resources", start=str(int(time.time()) + 3600))
    assert site() == ("pending", "waits for nodes that are busy (Resources)")
    assert "expected to start" in detail(site.rundir).text()
    site.event("begin")
    site.event("end", verdict="requeue", reason="stopped by SIGUSR1; queued again")
    site.rundir.mark("REQUEUE", "stopped by SIGUSR1", 75, 3)
    site.queue("PENDING", "BeginTime")
    assert status(site.rundir).restarts == 1
    assert "pending (requeued 1x)" in table([status(site.rundir)])


def test_a_job_that_starts_and_runs(site: Site) -> None:
    site.queue("CONFIGURING", nodes="node7")
    assert site()[0] == "starting"
    site.queue("RUNNING", nodes="node7")
    assert site() == ("starting", "its job runs on node7; no rank has started yet")
    site.lease(old=60)  # of the attempt before, which was killed
    site.rundir.mark("REQUEUE", "stopped by SIGUSR1", 75, 3)
    os.utime(site.rundir.path / "REQUEUE", (1, 1))
    site.event("begin")
    site.rundir.clear_markers()
    assert site()[0] == "starting"
    site.lease()
    site.point(10)
    assert site()[0] == "running"
    found = status(site.rundir)
    assert (found.nodes, found.left, found.total_samples, found.share) == ("node7", 540, 6400, 0.1)
    site.queue("COMPLETING", nodes="node7")
    assert site()[0] == "stopping"
    site.queue("SUSPENDED", nodes="node7")
    assert site()[0] == "suspended"
    site.queue("RUNNING", nodes="node7")
    site.rundir.lease.unlink()
    site.rundir.mark("REQUEUE", "stopped by SIGUSR1", 75, 10)
    assert site() == ("stopping", "stopped by SIGUSR1; its job is about to end")
    site.event("end", verdict="requeue", reason="stopped by SIGUSR1; queued again")
    site.queue("RUNNING", nodes="node7", start=str(int(time.time()) + 100))  # queued again and started, but not begun
    assert site()[0] == "starting"
    site.rundir.mark("DONE", "100 steps", 0, 100)
    assert site() == ("done", "100 steps")


@pytest.mark.parametrize(("state", "marker", "verdict", "expected"), [
    ("CANCELLED", None, None, ("cancelled", "job 12 was cancelled")),
    ("CANCELLED", "REQUEUE", "cancelled", ("cancelled", "why; job 12 was cancelled")),
    ("", "REQUEUE", "cancelled", ("cancelled", "it said so")),
    ("CANCELLED", "REQUEUE", "requeue", ("cancelled", "why; job 12 was cancelled")),
    ("TIMEOUT", "REQUEUE", "cancelled", ("timeout", "why; its job ran out of time before it was queued again")),
    ("TIMEOUT", None, None, ("timeout", "its job ran out of time before it was queued again")),
    ("NODE_FAIL", None, None, ("failed", "a node of its job failed")),
    ("OUT_OF_MEMORY", None, None, ("failed", "its job took more memory than it had asked for")),
    ("FAILED", "FAILED", "stop", ("failed", "why")),
    ("FAILED", None, "stop", ("failed", "it said so")),
    ("COMPLETED", "REQUEUE", "stop", ("stopped", "it said so")),
    ("COMPLETED", "DONE", "done", ("done", "why")),
    ("", "DONE", None, ("done", "why")),
    ("", "REQUEUE", None, ("stopped", "why; job 12 was not queued again")),
    ("", "REQUEUE", "requeue", ("stopped", "why; job 12 was queued again, and is gone from the queue since")),
    ("", None, None, ("killed", "job 12 is gone and its last attempt left no marker")),
])  # fmt: skip
def test_a_job_that_is_over(site: Site, state: str, marker: Any, verdict: str | None, expected: tuple[str, str]) -> None:
    site.event("begin")
    if marker is not None:
        site.rundir.mark(marker, "why", 1, 3)
    if verdict is not None:
        site.event("end", verdict=verdict, reason="it said so")
    site.queue(state)
    assert site() == expected
    if state in ("CANCELLED", "TIMEOUT", "NODE_FAIL", "OUT_OF_MEMORY"):  # squeue forgets it after minutes, accounts do not
        site.queue("")
        site.tool("sacct", f"echo '12|{state} by 0'")
        assert site() == expected


def test_a_job_of_a_colleague_is_known_by_the_accounts(site: Site) -> None:
    site.tool("sacct", "echo '12|PENDING'")
    assert site()[0] == "pending"
    site.tool("sacct", "echo '12|RUNNING'")
    assert site()[0] == "starting"


def test_a_job_on_another_host_that_is_over_tells_more_than_its_lease(site: Site) -> None:
    site.event("begin")
    site.lease()
    site.queue("NODE_FAIL")
    assert site()[0] == "failed"
    site.queue("")
    site.lease(old=300)
    assert site()[0] == "killed"
    site.lease()
    assert site()[0] == "running", "somebody trains it outside of Slurm"


def test_what_was_trained_here_after_its_job_counts(site: Site) -> None:
    site.event("begin")
    site.event("end", verdict="cancelled", reason="scancel")
    (site.rundir.path / "REQUEUE").write_text(json.dumps(
        {"state": "REQUEUE", "reason": "stopped by SIGINT", "code": 75, "step": 9, "time": time.time() + 60}
    ))  # fmt: skip
    assert site() == ("stopped", "stopped by SIGINT")
    lease = Lease(site.rundir.lease)
    try:
        assert site()[0] == "running"
    finally:
        lease.release()


def test_where_slurm_is_silent_the_folder_speaks(site: Site) -> None:
    site.tool("squeue", "echo 'slurm_load_jobs error: Unable to contact slurm controller' >&2; exit 1")
    assert site()[0] == "pending"
    assert "Unable to contact" in site()[1]
    site.event("begin")
    assert site()[0] == "starting"
    site.lease()
    assert site()[0] == "running"
    site.rundir.lease.unlink()
    site.event("end", verdict="requeue", reason="stopped by SIGUSR1; queued again")
    site.rundir.mark("REQUEUE", "stopped by SIGUSR1", 75, 3)
    assert site()[0] == "pending"
    site.rundir.mark("FAILED", "the loss is not finite", 1, 3)
    site.event("end", verdict="stop", reason="the loss is not finite")
    assert site() == ("failed", "the loss is not finite")
    for name in ("squeue", "sbatch", "sacct"):
        (site.bin / name).unlink()
    assert site() == ("failed", "the loss is not finite")
    assert "Slurm" not in detail(site.rundir).problem


def test_a_failure_names_the_rank_and_its_host(site: Site) -> None:
    site.rundir.mark("FAILED", "RuntimeError: boom", 1, 3)
    (site.rundir.logs / "failure-1.json").write_text(json.dumps({"rank": 3, "code": 1, "node": "node2"}))
    assert site() == ("failed", "rank 3 on node2: RuntimeError: boom")
    site.rundir.mark("FAILED", "rank 3 (process 7 on node2) died at step 4", 1, 3)
    assert site()[1] == "rank 3 (process 7 on node2) died at step 4"


def test_slurm_is_not_asked_where_no_run_was_given_to_it(site: Site) -> None:
    site.tool("squeue", "touch asked")
    site.rundir.job.unlink()
    assert site() == ("new", "not started yet")
    assert not Path("asked").exists()


def test_the_pace_is_that_of_this_attempt_and_the_best_is_found_wherever_it_stands(site: Site) -> None:
    now = time.time()
    for step in range(1, 21):
        site.point(step, time=now - 5000 + step, **{"train/loss": 1.0})  # an hour ago
    site.point(5, time=now - 4990, **{"val/accuracy": 0.99})
    for step in range(21, 601):
        site.point(step, time=now - 100 + step / 10, **{"train/loss": 0.5, "padding": "x" * 100})
    site.rundir.attempts.write_text(json.dumps({"attempt": 2, "event": "start", "time": now - 98.95, "step": 20}) + "\n")
    site.queue("RUNNING", nodes="node7")
    site.event("begin", time=now - 99)
    site.lease()
    found = status(site.rundir)
    assert (found.best_metric, found.best) == ("val/accuracy", 0.99)
    assert found.rate == pytest.approx(640)
    assert found.loss == 0.5
    site.rundir.ranks.mkdir()
    (site.rundir.ranks / "rank-00000.json").write_text(json.dumps({"rank": 0, "step": 605, "host": "node7", "pid": 1}))
    assert status(site.rundir).step == 605
    site.rundir.summary.write_text(json.dumps({"best": {"metric": "val/accuracy", "value": 0.5}, "total_samples": 64_000}))
    found = status(site.rundir)
    assert (found.best, found.total_samples) == (0.5, 64_000)
    assert found.eta == pytest.approx((64_000 - 605 * 64) / 640)


def test_a_run_is_found_by_name_or_path(tmp_path: Path) -> None:
    rundir = bare(tmp_path, "pets")
    assert find("pets", tmp_path / "runs") == find(str(rundir.path), tmp_path) == RunDir(rundir.path.resolve())
    with pytest.raises(UserError, match="did you mean 'pets'"):
        find("pest", tmp_path / "runs")
