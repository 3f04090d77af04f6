"""Where features are kept, and whether there is room for them."""

from __future__ import annotations

import shutil
from pathlib import Path

import psutil

from trainer.config.cache import Cache
from trainer.config.formats import places
from trainer.track.console import byte_size


def folder(config: Cache) -> Path:
    """The folder that holds a folder for each key."""
    own = "decoded" if config.kind == "decoded" else "features"
    return Path(config.path) if config.path is not None else places.cache() / own


def lacks(config: Cache, total: int, missing: int) -> str:
    """Why `total` bytes, `missing` of which are still to be written, do not fit; empty where they do."""
    where = folder(config)
    if config.max_gb is not None and total > config.max_gb * 1e9:
        return f"they take {byte_size(total)}, more than data.cache.max_gb {config.max_gb:g}"
    free = shutil.disk_usage(next(path for path in (where, *where.parents) if path.exists())).free
    if missing > free:
        return (
            f"they take {byte_size(missing)} and {where} has {byte_size(free)} left; make room, or name another folder as "
            "data.cache.path"
        )
    if config.kind == "auto" and config.max_gb is None:
        memory = psutil.virtual_memory().total
        if missing > free / 2:
            half = f"more than half of the {byte_size(free)} that {where} has left"
            return f"they take {byte_size(missing)}, {half}; data.cache.max_gb allows it"
        if total > memory / 4:
            most = f"more than a quarter of the memory ({byte_size(memory)})"
            return f"they take {byte_size(total)}, {most}; data.cache.max_gb allows it"
    return ""
