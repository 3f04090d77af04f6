"""`python -m tests.cluster`: a Slurm to try things on, until Ctrl-C; `-- command…` runs one command in it and stops it."""

from __future__ import annotations

import argparse
import contextlib
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from types import FrameType

import psutil

from tests.cluster.daemons import TestCluster

_HOLDER = "holder"  # file of a cluster that was started here: who holds it
_CLUSTER_FILE = """\
# The test cluster: four nodes on this machine. Its GPUs are fake: Slurm counts and binds them, CUDA finds none. So runs train on
# CPUs (parallel.device=cpu); with gpus_per_node: 2 here, jobs ask for GPUs, and `graft doctor` finds that torch sees none.
partition: main
time: "0:30:00"
warning: 60
"""
_TEXT = """\
A test cluster runs. In another terminal:

    export SLURM_CONF={folder}/slurm.conf XDG_CONFIG_HOME={folder}/config

{table}
    graft doctor                                       is it fit for runs?
    graft submit RUN.yaml parallel.device=cpu resources.nodes=2
    graft runs; graft logs -f NAME; squeue
    sbatch -p urgent -N 4 --exclusive --wrap 'sleep 30'    a job that preempts the run
    scontrol requeue JOB; scancel JOB; graft cancel NAME

The cluster file is {folder}/config/graft/clusters/default.yaml.
Ctrl-C here, or `python -m tests.cluster --stop`, ends the cluster and all of its jobs.
"""


def missing() -> str:
    """What has to be done before a cluster can be started here; empty when nothing."""
    path = f"{os.environ.get('PATH', '')}:/usr/sbin:/sbin"
    absent = [name for name in ("slurmctld", "slurmd", "munged", "sinfo") if shutil.which(name, path=path) is None]
    if absent:
        return f"{', '.join(absent)} not found: install Slurm and munge (Debian, Ubuntu: apt-get install slurm-wlm munge)"
    if os.geteuid() != 0:
        return "slurmd starts jobs for their users and so needs root: sudo, or a container"
    return ""


def holders() -> dict[Path, psutil.Process]:
    """The clusters that were started by this program and still run: folder and process."""
    found = {}
    for file in Path(tempfile.gettempdir()).glob(f"graft-slurm-*/{_HOLDER}"):
        with contextlib.suppress(OSError, ValueError, psutil.Error):
            pid, started = file.read_text().split()
            process = psutil.Process(int(pid))
            if abs(process.create_time() - float(started)) < 1:
                found[file.parent] = process
    return found


def stop_all() -> int:
    """End every cluster that was started by this program."""
    running = holders()
    if not running:
        print("no test cluster runs")
    for folder, process in running.items():
        process.terminate()
        with contextlib.suppress(psutil.TimeoutExpired):
            process.wait(timeout=20)
        print(f"{folder} " + ("does not end" if process.is_running() else "is stopped"))
    return int(any(process.is_running() for process in running.values()))


def run(command: list[str]) -> int:
    """Start a cluster; run the command, or wait for a signal; stop the cluster whatever happens."""
    for number in (signal.SIGTERM, signal.SIGHUP, signal.SIGINT):
        signal.signal(number, _end)
    cluster = TestCluster()
    try:
        cluster.start()
        (cluster.folder / _HOLDER).write_text(f"{os.getpid()} {psutil.Process().create_time()}")
        clusters = cluster.folder / "config" / "graft" / "clusters"
        clusters.mkdir(parents=True)
        (clusters / "default.yaml").write_text(_CLUSTER_FILE)
        if command:
            environment = {**cluster.environment, "XDG_CONFIG_HOME": str(cluster.folder / "config")}
            return subprocess.run(command, env=environment, check=False).returncode
        table = "".join(f"    {line}\n" for line in cluster.run("sinfo", "-o", "%P %a %l %D %t %G").stdout.splitlines())
        print(_TEXT.format(folder=cluster.folder, table=table), flush=True)
        while not (gone := cluster.daemons_missing()):
            time.sleep(1)
        print(f"{', '.join(gone)} ended:\n{cluster.logs()}", file=sys.stderr)
        return 1
    except FileNotFoundError as error:
        print(f"{command[0] if command else error.filename} is not a command here", file=sys.stderr)
        return 2
    finally:
        for number in (signal.SIGTERM, signal.SIGHUP, signal.SIGINT):
            signal.signal(number, signal.SIG_IGN)  # a second Ctrl-C must not leave half of it
        cluster.stop()


def _end(number: int, frame: FrameType | None) -> None:
    raise SystemExit(0 if number == signal.SIGINT else 128 + number)


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m tests.cluster", description=__doc__)
    parser.add_argument("--stop", action="store_true", help="end the clusters that were started by this program")
    parser.add_argument("command", nargs="*", help="after --: run this in a cluster of its own, then stop it")
    asked = parser.parse_args()
    if asked.stop:
        return stop_all()
    if problem := missing():
        print(problem, file=sys.stderr)
        return 2
    return run(asked.command)


if __name__ == "__main__":
    sys.exit(main())
