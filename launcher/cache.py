"""`graft cache`: the features and decoded images that runs kept: how much, of what, last used when; and their removal."""

from __future__ import annotations

import json
import shutil
import time
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from trainer.config import UserError, nearest
from trainer.config.formats import places

_DAY = 86400


@dataclass(frozen=True)
class Kept:
    """A folder of features or images: its key, bytes, the seconds since a run last used it, what they are, and who made it."""

    key: str
    path: str
    bytes: int
    unused: float
    what: str
    made: str
    by: str

    def as_json(self) -> dict[str, Any]:
        return asdict(self)


def find(keys: list[str], folder: Path | None, older: float | None) -> list[Kept]:
    """What there is, the longest unused first; only these keys (or beginnings of keys), unused for so many days.

    Raises UserError for a key that there is not.
    """
    roots = [folder] if folder is not None else [places.cache() / name for name in ("features", "decoded")]
    every = [_kept(path.parent) for root in roots for path in root.glob("*/about.json")]
    for key in keys:
        if not any(one.key.startswith(key) for one in every):
            raise UserError(f"{' and '.join(map(str, roots))} hold nothing '{key}'{nearest(key, [one.key for one in every])}")
    chosen = [one for one in every if not keys or one.key.startswith(tuple(keys))]
    return sorted((one for one in chosen if older is None or one.unused >= older * _DAY), key=lambda one: -one.unused)


def _kept(path: Path) -> Kept:
    try:
        about = json.loads((path / "about.json").read_text(encoding="utf-8"))
    except (OSError, ValueError):
        about = {}
    what, made, by = (str(about.get(key, "?")) if isinstance(about, dict) else "?" for key in ("what", "made", "by"))
    return Kept(
        path.name, str(path), sum(f.stat().st_size for f in path.iterdir()), time.time() - path.stat().st_mtime, what, made, by
    )


def remove(found: list[Kept], *, named: bool) -> None:
    """Remove them; a run that reads them at this moment goes on reading. Raises UserError unless they were named."""
    if not named:
        raise UserError("--remove wants keys, or --older DAYS (--older 0: everything)")
    for one in found:
        shutil.rmtree(one.path)


def text(found: list[Kept], *, removed: bool) -> str:
    """A line for each, and the sum."""
    lines = [
        f"{one.key}  {one.bytes / 1e6:10,.1f} MB  unused {one.unused / _DAY:6.1f} days  {one.what}  (by {one.by}, {one.made})"
        for one in found
    ]
    total = f"{sum(one.bytes for one in found) / 1e6:,.1f} MB"
    return "\n".join([*lines, f"{total} removed" if removed else f"{total} in all; graft cache KEY… --remove"])
