"""From a signal to the end of a Slurm job, on two nodes of a test cluster: `python -m benchmarks.stop` (needs Slurm, and root).

The signal is the one that comes before a time limit (USR1 to every process of the job's step). The limit is the time of one step
and one save; what is over that is printed.
"""

from __future__ import annotations

import sys
import tempfile
import time
from pathlib import Path
from statistics import median

from tests.cluster.daemons import TestCluster
from tests.cluster.jobs import submit
from tests.trainers import ROOT, run_file
from trainer.rundir import RunDir

TIMES = 5
STEP = 0.5  # seconds that each step sleeps


def once(cluster: TestCluster, folder: Path) -> tuple[float, float, float]:
    """Seconds from the signal to the marker, to the job script's verdict, and until Slurm has the nodes back."""
    run = run_file(
        folder, model={"source": f"python:{ROOT}/tests/network.py:small", "args": {"slow": STEP}},
        parallel={"device": "cpu", "processes": 2, "threads": 1}, train={"steps": 1000}, evaluate={"every": "500 steps"},
        checkpoint={"every": "1 h"},
    )  # fmt: skip
    job = submit(cluster, run, nodes=2)
    job.running_at(4)
    began = time.time()
    cluster.run("scancel", "--signal=USR1", job.id)
    judged = job.wait_for_end(1)["time"]
    while cluster.state(job.id) == "RUNNING":
        time.sleep(0.02)
    while cluster.run("sinfo", "-h", "-N", "-p", "main", "-t", "idle", "-o", "%N").stdout.count("node") < cluster.nodes:
        time.sleep(0.02)
    freed = time.time()
    marker = RunDir(job.folder).marker()
    assert marker is not None
    assert marker.state == "REQUEUE"
    cluster.cancel_all()
    return marker.time - began, judged - began, freed - began


def main() -> int:
    cluster = TestCluster()
    taken = []
    try:
        cluster.start()
        for number in range(TIMES):
            with tempfile.TemporaryDirectory() as name:
                taken.append(once(cluster, Path(name)))
                print(f"run {number + 1} of {TIMES}: " + ", ".join(f"{seconds:.2f} s" for seconds in taken[-1]), flush=True)
    finally:
        cluster.stop()
    saved, judged, freed = (median(values) for values in zip(*taken, strict=True))
    worst = max(marker for marker, _, _ in taken)
    print(f"a step of {STEP} s on 2 nodes x 2 ranks: saved and marked {saved:.2f} s after the signal (at most {worst:.2f}),")
    print(f"the job script has judged after {judged:.2f} s, the nodes are free after {freed:.2f} s (medians of {TIMES})")
    return 0


if __name__ == "__main__":
    sys.exit(main())
