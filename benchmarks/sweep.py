"""1,000 members of a sweep planned, rendered and submitted as one array: `python -m benchmarks.sweep` (needs Slurm, and root).

graft, submitit (map_array, which renders nothing) and hydra (compose and write, which submits nothing), each a command of
its own, on the Slurm of the tests. Beside it a second call of graft, which finds all of them queued, and the table.
"""

from __future__ import annotations

import json
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path

from benchmarks import paired, peers, results
from tests.cluster.daemons import TestCluster
from tests.trainers import ROOT, run_file

OVER = {
    "optimizer.lr": {"low": 1e-5, "high": 1e-2, "scale": "log"}, "optimizer.weight_decay": {"low": 0.0, "high": 0.1},
    "train.seed": {"low": 0, "high": 99, "integer": True},
}  # fmt: skip


def main(argv: Sequence[str] | None = None) -> int:
    chosen = results.options("benchmarks.sweep", __doc__, argv)
    if not peers.PYTHON.exists():
        raise SystemExit("hydra and submitit are not there; make the peers' environment: python -m benchmarks.peers")
    members = results.pick(chosen, 30, 1000, 1000)
    cluster = TestCluster()
    again: dict[str, list[float]] = {"the same command again": [], "graft runs --sweep": []}

    def timed(command: Sequence[str], folder: Path) -> float:
        began = time.perf_counter()
        done = subprocess.run(
            command, cwd=folder, check=False, capture_output=True, text=True, env={**cluster.environment, "PYTHONPATH": str(ROOT)}
        )
        if done.returncode:
            raise SystemExit(f"{' '.join(command)} ended with {done.returncode}:\n{(done.stdout + done.stderr)[-3000:]}")
        return time.perf_counter() - began

    def emptied(wanted: int) -> None:
        found = len(cluster.run("squeue", "-h", "-r", "-o", "%i").stdout.split())
        if found != wanted:
            raise SystemExit(f"{found} jobs are queued instead of {wanted}")
        cluster.run("scancel", "-u", "root")
        while cluster.run("squeue", "-h").stdout.strip():
            time.sleep(0.1)

    def graft() -> float:
        with tempfile.TemporaryDirectory() as name:
            folder = Path(name)
            run_file(folder)
            sweep = {
                "name": "search",
                "run": "run.yaml",
                "search": {"kind": "random", "count": members},
                "parallel": 8,
                "over": OVER,
            }
            (folder / "sweep.yaml").write_text(json.dumps(sweep), encoding="utf-8")
            command = [sys.executable, "-m", "launcher"]
            took = timed([*command, "sweep", "sweep.yaml"], folder)
            again["the same command again"].append(timed([*command, "sweep", "sweep.yaml"], folder))
            again["graft runs --sweep"].append(timed([*command, "runs", "--sweep", "search"], folder))
            emptied(members)
        return took

    def peer(kind: str, queued: int) -> float:
        with tempfile.TemporaryDirectory() as name:
            folder = Path(name)
            run_file(folder)
            took = timed([str(peers.PYTHON), "-m", "benchmarks.sweep_peers", kind, str(folder), str(members)], folder)
            rendered = len(list((folder / "rendered").glob("*/run.yaml")))
            if kind == "hydra" and rendered != members:
                raise SystemExit(f"hydra rendered {rendered} members instead of {members}")
            emptied(queued)
        return took

    try:
        cluster.start()
        cluster.run("scontrol", "update", "PartitionName=main", "State=DOWN")  # they wait: what is measured is not their training
        measured = paired.measure(
            {
                "graft sweep: checked, rendered, submitted": graft,
                "submitit map_array: submitted": lambda: peer("submitit", members),
                "hydra compose: rendered": lambda: peer("hydra", 0),
            },
            results.pick(chosen, 1, 1, 5),
            warm=False,
        )
    finally:
        cluster.stop()
    lines = [f"{members:,} members over three keys; whole commands, on a Slurm of four nodes on this machine.", ""]
    lines += paired.table(measured, "s")
    lines += ["", "; ".join(f"{what}: {paired.Spread.of(taken).text('.2f')} s" for what, taken in again.items()) + "."]
    command = results.command("benchmarks.sweep", chosen)
    figures = {"seconds": measured.times, "again": again}
    title = f"{members:,} runs rendered and submitted"
    return results.finish([results.Section("7", title, lines, "2 s, one array", command, figures)], chosen)


if __name__ == "__main__":
    sys.exit(main())
