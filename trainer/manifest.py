"""manifest.json: what made this run, so that it can be made again."""

from __future__ import annotations

import json
import logging
import platform
import shlex
import subprocess
import sys
from contextlib import suppress
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import torch

from trainer.config import RefusedError, Run
from trainer.config.sources import Listing, Splits
from trainer.rundir import RunDir, write_atomically

_PACKAGES = ("graft-trainer", "torch", "torchvision", "accelerate", "diffusers", "numpy", "pillow", "safetensors", "wandb")
log = logging.getLogger("graft")


def versions() -> dict[str, str]:
    """The versions of what computes the result."""
    found = {"python": platform.python_version()}
    for package in _PACKAGES:
        try:
            found[package] = version(package)
        except PackageNotFoundError:
            continue
    if torch.version.cuda and torch.cuda.is_available():
        found["cuda"] = torch.version.cuda
    return found


def git_revision(folder: Path) -> str | None:
    """The commit of the working directory, with `+` when files differ from it; none outside a repository.

    A job works in a copy of the code, which tells its commit itself: what git says there is that of a repository around it.
    """
    for parent in (folder, *folder.parents):
        with suppress(OSError, ValueError, KeyError, TypeError):
            record = json.loads((parent.parent / "code.json").read_text(encoding="utf-8")) if parent.name == "files" else {}
            return f"{record['revision']}{'+' if record['changed'] or record['untracked'] else ''}"

    def git(*arguments: str) -> str:
        return subprocess.run(
            ["git", "-C", str(folder), *arguments], capture_output=True, text=True, timeout=10, check=True
        ).stdout.strip()

    try:
        return git("rev-parse", "HEAD") + ("+" if git("status", "--porcelain", "--untracked-files=no") else "")
    except (OSError, subprocess.SubprocessError):
        return None


def _facts(listing: Listing | None) -> dict[str, Any] | None:
    if listing is None:
        return None
    said = {} if listing.plain else {"targets": listing.facts.as_json()}
    counts = dict(zip(listing.classes, listing.counts(), strict=True))
    return {"samples": len(listing.items), "classes": counts, **said, "fingerprint": listing.fingerprint()}


def write_manifest(
    folder: RunDir, run: Run, splits: Splits, *, world: int, device: str, computes: dict[str, Any], accept_changes: bool
) -> None:  # fmt: skip
    """Write manifest.json, after a comparison with the one of the last attempt; `computes`: what was chosen of how it does.

    Raises RefusedError when the data changed since; another version of a library is recorded and warned of.
    """
    data = {"train": _facts(splits.train), "val": _facts(splits.val)}
    before = folder.read_json(folder.manifest)
    if before and not accept_changes:
        for part, facts in data.items():
            old = (before.get("data") or {}).get(part) or {}
            if (facts or {}).get("fingerprint") != old.get("fingerprint"):
                raise RefusedError(
                    f"the {part} data of {folder.name} changed since the last attempt: "
                    f"{old.get('samples')} samples then, {(facts or {}).get('samples')} now, or other names, labels or sizes; "
                    "give the run another name, or pass --accept-changes to go on with the new data"
                )
    now = versions()
    for package, old_version in (before.get("versions") or {}).items():
        if now.get(package) != old_version:
            log.warning("%s is %s now and was %s in the last attempt: results may differ", package, now.get(package), old_version)
    manifest = {
        "run": run.name, "seed": run.train.seed, "command": shlex.join(sys.orig_argv), "git": git_revision(Path.cwd()),
        "versions": now, "platform": platform.platform(), "world": world, "device": device,
        "gpu": torch.cuda.get_device_name() if device.startswith("cuda") else None,
        "threads": torch.get_num_threads(), "computes": computes, "data": data,
    }  # fmt: skip
    write_atomically(folder.manifest, json.dumps(manifest, indent=1) + "\n")
