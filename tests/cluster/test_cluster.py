"""`python -m tests.cluster` leaves nothing behind, even when it is killed."""

from __future__ import annotations

import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import psutil
import pytest

from tests.cluster.daemons import TestCluster

ROOT = Path(__file__).resolve().parents[2]


def until(seen: Callable[[], bool], timeout: float = 20.0) -> bool:
    deadline = time.monotonic() + timeout
    while not seen() and time.monotonic() < deadline:
        time.sleep(0.1)
    return seen()


def sleepers(seconds: str) -> list[int]:
    return [p.pid for p in psutil.process_iter(["cmdline"]) if p.info["cmdline"] == ["sleep", seconds]]


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGKILL])
def test_neither_daemons_nor_jobs_survive(number: signal.Signals) -> None:
    """Jobs that ignore TERM and hide their environment end with it, whether it is asked to end or killed."""
    mark = f"9{os.getpid()}{int(number):02}"
    process = subprocess.Popen([sys.executable, "-m", "tests.cluster"], cwd=ROOT, stdout=subprocess.PIPE, text=True)
    try:
        assert process.stdout is not None
        lines = [process.stdout.readline() for _ in range(12)]
        found = re.search(r"SLURM_CONF=(\S+)/slurm.conf", "".join(lines))
        assert found, lines
        cluster = TestCluster(Path(found[1]))
        script = f"trap '' TERM; srun env -i sleep {mark} & env -i sleep {mark} & wait; wait"
        cluster.run("sbatch", "-N2", "--output=/dev/null", "--wrap", script)
        assert until(lambda: len(sleepers(mark)) == 3), cluster.logs()
    finally:
        process.send_signal(number)
        process.wait(timeout=20)
        process.stdout.close() if process.stdout else None
    assert until(lambda: not cluster.folder.exists() and not cluster.strays() and not sleepers(mark))


def test_a_command_runs_in_it_and_gives_its_exit_code() -> None:
    command = "srun -N4 true && test -f $XDG_CONFIG_HOME/graft/clusters/default.yaml && dirname $SLURM_CONF && exit 7"
    done = subprocess.run(
        [sys.executable, "-m", "tests.cluster", "--", "sh", "-c", command],
        cwd=ROOT, capture_output=True, text=True, timeout=60, check=False,
    )  # fmt: skip
    assert done.returncode == 7, done.stderr
    assert not Path(done.stdout.strip()).exists()
