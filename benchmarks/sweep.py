"""How long a sweep of 1,000 members takes to plan, render and submit as one array: `python -m benchmarks.sweep`.

On the Slurm of the tests (root, slurm-wlm, munge). Beside it the time of a second call, which finds all of them queued, and of
the table.
"""

from __future__ import annotations

import json
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from statistics import median

from tests.cluster.daemons import TestCluster
from tests.trainers import ROOT, run_file

TIMES, MEMBERS, GOAL = 5, 1000, 5.0
SWEEP = {
    "name": "search", "run": "run.yaml", "search": {"kind": "random", "count": MEMBERS}, "parallel": 8,
    "over": {
        "optimizer.lr": {"low": 1e-5, "high": 1e-2, "scale": "log"}, "optimizer.weight_decay": {"low": 0.0, "high": 0.1},
        "train.seed": {"low": 0, "high": 99, "integer": True},
    },
}  # fmt: skip


def main() -> int:
    cluster = TestCluster()
    whats = ("planned, rendered and submitted", "the same command again", "graft runs --sweep")
    times: dict[str, list[float]] = {what: [] for what in whats}
    try:
        cluster.start()
        cluster.run("scontrol", "update", "PartitionName=main", "State=DOWN")  # they wait: what is measured is not their training
        for _ in range(TIMES):
            with tempfile.TemporaryDirectory() as name:
                folder = Path(name)
                run_file(folder)
                (folder / "sweep.yaml").write_text(json.dumps(SWEEP))
                commands = (["sweep", "sweep.yaml"], ["sweep", "sweep.yaml"], ["runs", "--sweep", "search"])
                for taken, arguments in zip(times.values(), commands, strict=True):
                    began = time.perf_counter()
                    subprocess.run(
                        [sys.executable, "-m", "launcher", *arguments], cwd=folder, check=True, stdout=subprocess.DEVNULL,
                        env={**cluster.environment, "PYTHONPATH": str(ROOT)},
                    )  # fmt: skip
                    taken.append(time.perf_counter() - began)
                found = len(cluster.run("squeue", "-h", "-r", "-o", "%i").stdout.split())
                assert found == MEMBERS, f"{found} members are queued"
                cluster.run("scancel", "-u", "root")
                while cluster.run("squeue", "-h").stdout.strip():
                    time.sleep(0.1)
    finally:
        cluster.stop()
    for what, taken in times.items():
        taken.sort()
        goal = f" (goal {GOAL:.0f} s)" if what.startswith("planned") else ""
        print(f"{MEMBERS:,} members, {what}: median {median(taken):.2f} s, {taken[0]:.2f} to {taken[-1]:.2f} of {TIMES}{goal}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
