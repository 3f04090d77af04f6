"""A run that was given to Slurm, and a Slurm that says what a test wants."""

from __future__ import annotations

import json
import os
import time
from dataclasses import asdict
from pathlib import Path
from typing import Any

from launcher.runs import status
from tests.unit.folders import RUN, bare
from trainer.rundir.lease import Holder


class Site:
    """A run that is job 12 of a Slurm whose squeue prints what a test says."""

    def __init__(self, folder: Path) -> None:
        self.bin = folder / "bin"
        self.bin.mkdir()
        self.rundir = bare(folder, "pets", RUN + "train: {steps: 100, global_batch: 64}\n")
        self.rundir.job.write_text(json.dumps({"id": "12", "cluster": None, "submitted": time.time(), "restart": 0}))
        self.tool("sbatch", "")
        self.tool("sacct", "exit 1")
        self.queue("")

    def tool(self, name: str, body: str) -> None:
        (self.bin / name).write_text(f"#!/bin/sh\n{body}\n")
        (self.bin / name).chmod(0o755)

    def queue(self, state: str, reason: str = "None", *, start: str = "N/A", nodes: str = "") -> None:
        line = f"12|{state}|main|9:00|{start}|{nodes}|{reason}" if state else ""
        self.tool("squeue", f"printf '%s\\n' '{line}'")

    def event(self, event: str, **more: Any) -> None:
        with self.rundir.jobs.open("a") as file:
            file.write(json.dumps({"event": event, "time": time.time(), "job": "12", "restart": 0, "step": 3, **more}) + "\n")

    def point(self, step: int, **more: Any) -> None:
        with self.rundir.metrics.open("a") as file:
            file.write(json.dumps({"step": step, "samples": step * 64, "time": time.time(), **more}) + "\n")

    def lease(self, host: str = "node7", *, old: float = 0.0) -> None:
        holder = Holder(host, "boot", 4242, 1.0, "token", 0, "today", "trainer")
        self.rundir.lease.write_text(json.dumps(asdict(holder)))
        os.utime(self.rundir.lease, (time.time() - old,) * 2)

    def __call__(self) -> tuple[str, str]:
        found = status(self.rundir)
        return found.state, found.reason
