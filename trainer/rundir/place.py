"""Where this process runs, in Slurm's words where it runs under Slurm."""

from __future__ import annotations

import os
import socket


def node_name() -> str:
    """This node as Slurm calls it, which is what a job can leave out; else the host's name."""
    return os.environ.get("SLURMD_NODENAME") or socket.gethostname()


def slurm_start() -> tuple[str, int]:
    """The Slurm job that this process belongs to and how often it was queued again; empty and 0 without Slurm."""
    return os.environ.get("SLURM_JOB_ID", ""), int(os.environ.get("SLURM_RESTART_COUNT") or 0)
