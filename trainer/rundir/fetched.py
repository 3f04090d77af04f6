"""What `graft fetch` brought: a small record a model, so that `graft submit` knows without importing what reads the caches."""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from trainer.rundir.folder import write_atomically

# what decides where the libraries keep their caches: with another value, nothing has been fetched there yet
_PLACES = ("HOME", "XDG_CACHE_HOME", "TORCH_HOME", "HF_HOME", "HF_HUB_CACHE")


def note(source: str, weights: str, files: list[Path]) -> None:
    """Record that these files are what a model needs, whole and checked. Raises OSError."""
    path = _record(source, weights, os.environ)
    path.parent.mkdir(parents=True, exist_ok=True)
    held = [{"file": str(file.absolute()), "bytes": file.stat().st_size} for file in files]
    write_atomically(path, json.dumps({"source": source, "weights": weights, "files": held}, indent=1) + "\n")


def noted(source: str, weights: str, environment: Mapping[str, str]) -> list[tuple[Path, int]] | None:
    """The files that were fetched for a model and their sizes in bytes; none if there is no record, or not of this cache."""
    try:
        said: dict[str, Any] = json.loads(_record(source, weights, environment).read_text(encoding="utf-8"))
        return [(Path(held["file"]), int(held["bytes"])) for held in said["files"]]
    except (OSError, ValueError, KeyError, TypeError):
        return None


def _record(source: str, weights: str, environment: Mapping[str, str]) -> Path:
    home = environment.get("HOME") or str(Path("~").expanduser())
    cache = Path(environment.get("XDG_CACHE_HOME") or Path(home) / ".cache")
    key = json.dumps([source, weights, *(environment.get(name, "") for name in _PLACES)])
    return cache / "graft" / "fetched" / f"{hashlib.sha256(key.encode()).hexdigest()[:24]}.json"
