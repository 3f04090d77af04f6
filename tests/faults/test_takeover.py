"""S5: Slurm queues a job again while its old step goes on: the later start takes the folder over, the earlier one ends."""

from __future__ import annotations

import time
from pathlib import Path

import psutil

from tests.trainers import ROOT, Zygote, run_file, same, wait_for_step

PACE = {"source": f"python:{ROOT}/tests/network.py:small", "args": {"slow": 0.05}}


def start(job: str, restart: int) -> dict[str, str]:
    return {"SLURM_JOB_ID": job, "SLURM_RESTART_COUNT": str(restart)}


def test_a_later_start_of_the_same_job_takes_over_and_another_job_is_refused(trainers: Zygote, tmp_path: Path) -> None:
    for name in ("straight", "taken"):
        (tmp_path / name).mkdir()
    run = run_file(tmp_path, model=PACE, train={"steps": 120})
    earlier = trainers.start(run, tmp_path / "taken", world=2, env=start("77", 0))
    wait_for_step(tmp_path / "taken" / "run", 20)
    (other,) = trainers.start(run, tmp_path / "taken", env=start("78", 5))
    assert other.wait() == 3
    assert f"in use by process {earlier[0].pid}" in other.text()
    later = trainers.start(run, tmp_path / "taken", world=2, env=start("77", 1))
    began = time.monotonic()
    codes = [rank.wait() for rank in earlier]
    assert time.monotonic() - began < 20
    assert 0 not in codes
    assert [rank.wait() for rank in later] == [0, 0]
    assert trainers.run(run, tmp_path / "straight", world=2) == [0, 0]
    same(tmp_path / "taken" / "run", tmp_path / "straight" / "run")
    assert not any(psutil.pid_exists(rank.pid) for rank in [*earlier, *later])
