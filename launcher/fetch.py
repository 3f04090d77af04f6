"""`graft fetch`: the caches of the login node are filled by the trainer; `missing` says, without torch, what is not there."""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path

from launcher.cluster import load_cluster
from launcher.python import environment, trainer_command
from launcher.start import locate
from trainer.config import Run
from trainer.config.absolute import SAVED
from trainer.config.model import Model
from trainer.rundir import fetched


def fetch(target: str, overrides: list[str], runs: Path) -> int:
    """Become `python -m trainer fetch` for a run file or folder, with the caches of its cluster. Raises UserError."""
    run, rundir = locate(target, overrides, runs)
    path = Path(target)
    file = path if path.suffix in (".yaml", ".yml") or path.is_file() else rundir.config
    words = trainer_command("fetch", "--", str(file.absolute()), *overrides)
    os.execve(words[0], words, environment() | load_cluster(run.resources.cluster).environment)


def missing(run: Run, environment: Mapping[str, str] = os.environ) -> list[str]:
    """What a node without a network would lack of a run's networks; empty if nothing.

    Torch-free: weights that have a name count as here when `graft fetch` recorded them, for the caches that `environment`
    names, and the files still have their sizes. Files of the user's own are looked at as they are.
    """
    return [lack for key, model in run.models.items() for lack in _lacks(key, model, environment)]


def _lacks(key: str, model: Model, environment: Mapping[str, str]) -> list[str]:
    source, weights = model.source, model.weights
    if weights == "none":
        return []
    if "/" in weights or Path(weights).suffix:
        return [] if os.access(weights, os.R_OK) else [f"{weights} ({key}.weights) is not there, or cannot be read"]
    scheme, _, rest = source.partition(":")
    if scheme in SAVED and rest.startswith("/"):  # a folder of the user's own, or of another run
        place = Path(rest.partition("#")[0])
        return [] if os.access(place, os.R_OK | os.X_OK) else [f"{place} ({key}.source) is not there, or cannot be read"]
    found = fetched.noted(source, weights, environment)
    if found is None:
        return [f"the weights {weights} of {source} were not fetched into this cache; `graft fetch RUN` does"]
    return [
        f"{file}, of the weights {weights} of {source}, is not what was fetched; `graft fetch RUN` mends it"
        for file, size in found
        if not file.is_file() or file.stat().st_size != size
    ]
