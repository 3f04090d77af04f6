"""A rank that hangs on the real daemons: the job ends by itself, says who it was, and is queued again."""

from __future__ import annotations

import os
import signal
import time
from pathlib import Path

import pytest

from tests.cluster.daemons import TestCluster
from tests.cluster.jobs import submit
from tests.trainers import ROOT, run_file


@pytest.mark.timeout(240)
def test_a_job_whose_rank_hangs_is_queued_again_and_names_it(cluster: TestCluster, tmp_path: Path) -> None:
    file = run_file(
        tmp_path,
        model={"source": f"python:{ROOT}/tests/network.py:small", "args": {"slow": 0.1}},
        parallel={"processes": 2, "timeout": 5}, checkpoint={"every": "5 steps"}, evaluate={"every": "20 steps"},
        train={"steps": 30},
    )  # fmt: skip
    job = submit(cluster, file, nodes=2)
    hung = job.running_at(8, rank=3)
    began = time.monotonic()
    os.kill(hung["pid"], signal.SIGSTOP)
    end = job.wait_for_end(1, timeout=80)
    took = time.monotonic() - began
    assert end["verdict"] == "requeue"
    assert f"rank 3 (process {hung['pid']} on {hung['host']}, Slurm's {hung['node']}) stands still" in end["reason"]
    assert took < 60  # the stopped process takes no SIGTERM: torchrun waits for it, then kills it
    assert end["step"] >= 5
    assert job.wait("COMPLETED", "FAILED", timeout=120) == "COMPLETED", job.text()
    assert cluster.restarts(job.id) == 1
