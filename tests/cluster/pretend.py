"""A job that leaves in a run folder what a training would, without training: `python -m tests.cluster.pretend FOLDER`.

Holds the lease, shows a heartbeat, records a point every tenth of a second; saves and leaves a marker at SIGTERM or SIGUSR1,
and is then queued again unless it was cancelled. It fails where the folder holds a file called `fail`.
"""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

from trainer.rundir import Lease, RunDir
from trainer.rundir.folder import write_atomically
from trainer.watch import Heartbeat


def main() -> int:
    """Play one attempt; returns the exit code of the job."""
    folder = RunDir(Path(sys.argv[1]))
    told: list[int] = []
    for number in (signal.SIGTERM, signal.SIGUSR1):
        signal.signal(number, lambda received, frame: told.append(received))
    if (folder.path / "fail").exists():
        print("the site file is broken", flush=True)
        return 1
    array, task = os.environ.get("SLURM_ARRAY_JOB_ID"), os.environ.get("SLURM_ARRAY_TASK_ID")
    job = f"{array}_{task}" if array else os.environ["SLURM_JOB_ID"]
    restart = int(os.environ.get("SLURM_RESTART_COUNT") or 0)

    def note(event: dict[str, Any]) -> None:
        with folder.jobs.open("a", encoding="utf-8") as file:
            file.write(json.dumps({"time": time.time(), "job": job, "restart": restart, **event}) + "\n")

    folder.clear_markers()
    known = folder.read_json(folder.job)
    write_atomically(folder.job, json.dumps({**known, "id": job, "restart": restart, "started": time.time()}))
    note({"event": "begin", "nodes": [os.environ["SLURMD_NODENAME"]], "step": 0})
    lease, heart, step = Lease(folder.lease), Heartbeat(folder.ranks, 0), 0
    with folder.attempts.open("a", encoding="utf-8") as file:
        start = {"attempt": restart + 1, "event": "start", "time": time.time(), "step": 0, "world": 1, "host": "here"}
        file.write(json.dumps(start) + "\n")
    with folder.metrics.open("a", encoding="utf-8", buffering=1) as file:
        while not told:
            step += 1
            heart.step = step
            point = {"samples": step * 64, "step": step, "epoch": step / 10, "time": time.time(), "train/loss": 1 / step}
            file.write(json.dumps(point) + "\n")
            time.sleep(0.1)
    (folder.checkpoints / f"step-{step:08d}").mkdir()
    folder.mark("REQUEUE", f"stopped by {signal.Signals(told[0]).name}", 75, step)
    heart.close()
    lease.release()
    said = subprocess.run(["squeue", "-h", "-j", os.environ["SLURM_JOB_ID"], "-o", "%T"], capture_output=True, text=True)
    again = said.stdout.strip() == "RUNNING"
    note(
        {"event": "end", "verdict": "requeue" if again else "cancelled", "reason": f"it was {said.stdout.strip()}", "step": step}
    )
    if again:
        signal.signal(signal.SIGTERM, signal.SIG_IGN)
        subprocess.run(["scontrol", "requeue", os.environ["SLURM_JOB_ID"]], check=False)
    return 0


if __name__ == "__main__":
    sys.exit(main())
