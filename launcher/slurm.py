"""The few Slurm commands that graft needs, each with a time limit and an error that says what to do."""

from __future__ import annotations

import os
import shutil
import subprocess
from collections.abc import Sequence
from pathlib import Path

from trainer.config import GraftError, RefusedError, UserError

_CONNECTION = ("SLURM_CONF", "SLURM_CONF_SERVER", "SLURM_CLUSTERS", "SLURM_JWT")  # how the controller is reached
_TIMEOUT = 60.0  # seconds; a busy controller answers late


def available() -> bool:
    """Whether this machine has Slurm's commands."""
    return shutil.which("sbatch") is not None


def command(*words: str, timeout: float = _TIMEOUT, environment: dict[str, str] | None = None) -> str:
    """Run a Slurm command and return what it prints. GraftError with its own words when it fails."""
    if shutil.which(words[0]) is None:
        raise UserError(f"{words[0]} is not on this machine: Slurm commands work on a login node (here, `graft train` trains)")
    try:
        done = subprocess.run(words, stdin=subprocess.DEVNULL, capture_output=True, text=True, timeout=timeout, env=environment)
    except subprocess.TimeoutExpired:
        raise GraftError(
            f"{words[0]} did not answer within {timeout:.0f} s: is the Slurm controller up? `scontrol ping` says"
        ) from None
    if done.returncode != 0:
        raise RefusedError(f"{words[0]} refused: {(done.stderr or done.stdout).strip() or f'exit code {done.returncode}'}")
    return done.stdout


def submit(script: Path, arguments: Sequence[str] = ()) -> str:
    """Hand a job script to sbatch; returns the job id."""
    # SBATCH_* would overrule what the script says, and every SLURM_* travels with the job whatever --export says
    kept = {k: v for k, v in os.environ.items() if not k.startswith(("SBATCH_", "SLURM_")) or k in _CONNECTION}
    return command("sbatch", "--parsable", *arguments, str(script), environment=kept).strip().partition(";")[0]
