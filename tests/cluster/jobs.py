"""Runs of the tests as Slurm jobs: started with slurm/train.sbatch as a user would, watched, broken."""

from __future__ import annotations

import contextlib
import json
import sys
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import psutil

from tests.cluster.daemons import TestCluster
from tests.trainers import ROOT, wait_for_step
from trainer.rundir import read_points

EXPORT = "HOME,USER,PATH,PYTHONPATH,GRAFT_PYTHON,GRAFT_MEET_WITHIN"


@dataclass
class Job:
    """A submitted run; `folder` is its run folder."""

    cluster: TestCluster
    id: str
    folder: Path
    output: Path

    def text(self) -> str:
        return self.output.read_text(errors="replace") if self.output.exists() else "no output"

    def wait(self, *states: str, timeout: float = 120) -> str:
        try:
            return self.cluster.wait(self.id, states, timeout)
        except AssertionError as error:
            raise AssertionError(f"{error}\n{self.text()}") from None

    def running_at(self, step: int, rank: int = 0, timeout: float = 90) -> dict[str, Any]:
        """Wait until a rank reaches a step; its heartbeat."""
        try:
            return wait_for_step(self.folder, step, rank, timeout)
        except AssertionError as error:
            raise AssertionError(f"{error}\n{self.text()}\n{self.cluster.logs()}") from None

    def events(self) -> list[dict[str, Any]]:
        return read_points(self.folder / "jobs.jsonl")

    def attempts(self) -> list[dict[str, Any]]:
        """Start and end of each attempt, in order."""
        return read_points(self.folder / "attempts.jsonl")

    def steps(self) -> list[tuple[int, int | None]]:
        """For each attempt the step it started at and the one it ended at (none after a kill)."""
        found: dict[int, tuple[int, int | None]] = {}
        for event in self.attempts():
            if event["event"] == "start":
                found[event["attempt"]] = (event["step"], None)
            elif event["event"] == "end":
                found[event["attempt"]] = (found[event["attempt"]][0], event["step"])
        return list(found.values())

    def wait_for_end(self, count: int, timeout: float = 60) -> dict[str, Any]:
        """Wait until the job script has judged so many ends; the last of them."""
        deadline = time.monotonic() + timeout
        while time.monotonic() < deadline:
            ends = [e for e in self.events() if e["event"] == "end"]
            if len(ends) >= count:
                return ends[count - 1]
            time.sleep(0.1)
        raise AssertionError(f"{count} ends are not there: {self.events()}\n{self.text()}")

    def processes(self, module: str, node: str | None = None) -> list[psutil.Process]:
        """Processes `python -m MODULE …` of this job, on one node of it or on all."""
        found = []
        for process in psutil.process_iter():
            with contextlib.suppress(psutil.Error):
                words, environment = process.cmdline(), process.environ()
                here = node is None or environment.get("SLURMD_NODENAME") == node
                if here and module in words and environment.get("SLURM_JOB_ID") == self.id:
                    found.append(process)
        return found


def submit(
    cluster: TestCluster,
    run: Path,
    *options: str,
    nodes: int = 1,
    overrides: tuple[str, ...] = (),
    env: dict[str, str] | None = None,
) -> Job:
    """sbatch slurm/train.sbatch RUN, from the folder of the run file."""
    where = run.parent
    output = where / "job.out"
    words = ["sbatch", "--parsable", f"--export={EXPORT}", f"--nodes={nodes}", "--gpus-per-node=2", "--cpus-per-task=2",
             f"--output={output}", *options, str(ROOT / "slurm" / "train.sbatch"), str(run), *overrides]  # fmt: skip
    own = {"GRAFT_PYTHON": sys.executable, "PYTHONPATH": str(ROOT), **(env or {})}
    job = cluster.run(*words, cwd=where, env=own).stdout.strip()
    name = json.loads(run.read_text())["name"]
    return Job(cluster, job, where / "runs" / name, output)
