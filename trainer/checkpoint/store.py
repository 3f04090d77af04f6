"""The folder of checkpoints: commit, verify, find the last good one, rotate.

A checkpoint is a folder that appears by one rename, with everything in it durable before. `manifest.json` holds the size and
sha256 of every file and a sha256 of itself, and is checked in full before anything is loaded.
"""

from __future__ import annotations

import errno
import hashlib
import json
import logging
import os
import re
import secrets
import shutil
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from trainer.config import RefusedError
from trainer.faultpoints import reached
from trainer.rundir import write_atomically
from trainer.rundir.folder import fsync_folder

_NAME = re.compile(r"step-(\d{8,})")
_BLOCK = 1 << 22
log = logging.getLogger("graft.checkpoint")

Facts = dict[str, dict[str, Any]]  # size and sha256 of files by name
Write = Callable[[Path], Facts]


@dataclass(frozen=True)
class Loaded:
    """A checkpoint whose every byte was checked: its folder, its step and its `state.json`."""

    path: Path
    step: int
    state: dict[str, Any]


def _digest(manifest: dict[str, Any]) -> str:
    content = {key: value for key, value in manifest.items() if key != "sha256"}
    return hashlib.sha256(json.dumps(content, sort_keys=True, separators=(",", ":")).encode()).hexdigest()


def verify(path: Path) -> dict[str, Any]:
    """Check every file of a checkpoint against its manifest; returns `state.json`. ValueError names the file and its fault."""
    try:
        manifest = json.loads((path / "manifest.json").read_bytes())
        expected: dict[str, dict[str, Any]] = manifest["files"]
        declared = manifest["sha256"]
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise ValueError(f"manifest.json cannot be read ({error})") from None
    if declared != _digest(manifest):
        raise ValueError("manifest.json does not match its own checksum")
    for name, facts in expected.items():
        file = path / name
        try:
            size = file.stat().st_size
            if size != facts["size"]:
                raise ValueError(f"{name} has {size:,} bytes instead of {facts['size']:,}")
            with file.open("rb") as stream:
                found = hashlib.file_digest(stream, "sha256").hexdigest()
        except OSError as error:
            raise ValueError(f"{name} cannot be read ({error.strerror})") from None
        if found != facts["sha256"]:
            raise ValueError(f"{name} does not match its checksum")
    state: dict[str, Any] = json.loads((path / "state.json").read_bytes())
    return state


class Store:
    """Commits checkpoints below `folder`; `before_commit` may refuse (the lease was lost)."""

    def __init__(self, folder: Path, *, keep: int, before_commit: Callable[[], None] = lambda: None) -> None:
        self._folder = folder
        self._keep = keep
        self._before_commit = before_commit

    @property
    def index(self) -> dict[str, Any]:
        """`last` and `best` by name, and the best value; empty before the first commit."""
        try:
            value = json.loads((self._folder / "index.json").read_text(encoding="utf-8"))
        except (OSError, ValueError):
            return {}
        return value if isinstance(value, dict) else {}

    def clean(self) -> None:
        """Remove what an interrupted save or rotation left behind. Only the holder of the lease may call it."""
        for path in self._folder.glob(".*-step-*"):
            if path.name.startswith((".tmp-", ".old-")):
                shutil.rmtree(path, ignore_errors=True)

    def steps(self) -> dict[int, Path]:
        """The committed checkpoints by step, newest last: ordered by step, never by a clock."""
        found = ((_NAME.fullmatch(path.name), path) for path in self._folder.glob("step-*"))
        return dict(sorted((int(match[1]), path) for match, path in found if match))

    def commit(self, step: int, write: Write, state: dict[str, Any], *, best: float | None) -> Path:
        """Make a checkpoint so that it exists whole or not at all; then rotate. `write` puts its files into a folder, durably,
        and says what it put there; `best`: the metric, if this is the best yet.
        """
        name = f"step-{step:08d}"
        final = self._folder / name
        # The state after a step is always the same, so an intact checkpoint of it is never replaced.
        if not final.exists() or not self._intact(final):
            self._write_folder(final, step, write, state)
        self._before_commit()
        index = self.index | {"last": name}
        if best is not None:
            index |= {"best": name, "best_value": best}
        write_atomically(self._folder / "index.json", json.dumps(index) + "\n")
        reached("save-indexed", step)
        self._rotate(index)
        return final

    def _intact(self, path: Path) -> bool:
        try:
            verify(path)
        except ValueError as error:
            self._set_aside(path, error)
            return False
        return True

    def _set_aside(self, path: Path, error: ValueError) -> None:
        log.warning("checkpoint %s is damaged: %s; it is set aside", path, error)
        try:
            path.rename(self._folder / f".bad-{path.name}-{secrets.token_hex(4)}")
        except OSError as failure:
            if failure.errno not in (errno.EROFS, errno.EACCES):
                raise

    def _write_folder(self, final: Path, step: int, write: Write, state: dict[str, Any]) -> None:
        name = final.name
        temporary = self._folder / f".tmp-{name}-{secrets.token_hex(4)}"
        try:
            temporary.mkdir()
            reached("save-created", step)
            facts = write(temporary)
            facts |= write_files(temporary, {"state.json": memoryview(json.dumps(state).encode())}, step)
            manifest: dict[str, Any] = {"format": 1, "step": step, "samples": state.get("samples"), "files": facts}
            manifest["sha256"] = _digest(manifest)
            _write(temporary / "manifest.json", memoryview(json.dumps(manifest, separators=(",", ":")).encode()))
            reached("save-manifest", step)
            fsync_folder(temporary)
            self._before_commit()
            reached("save-synced", step)
            temporary.rename(final)
            reached("save-renamed", step)
            fsync_folder(self._folder)
        except BaseException:
            shutil.rmtree(temporary, ignore_errors=True)
            raise

    def _rotate(self, index: dict[str, Any]) -> None:
        """Remove all but the newest and the best; only after the new one is durable."""
        steps = list(self.steps().values())
        for path in steps[: -self._keep]:
            if path.name not in (index.get("best"), index.get("last")):
                away = self._folder / f".old-{path.name}-{secrets.token_hex(4)}"
                path.rename(away)
                reached("rotate-renamed")
                shutil.rmtree(away, ignore_errors=True)
                reached("rotate-removed")

    def last_good(self) -> Loaded | None:
        """The newest checkpoint that verifies. A bad one is named, set aside and never considered again.

        None when there is no checkpoint at all; RefusedError when there are some and none is good.
        """
        steps = self.steps()
        for step, path in reversed(steps.items()):
            try:
                return Loaded(path, step, verify(path))
            except ValueError as error:
                self._set_aside(path, error)
        if steps:
            raise RefusedError(
                f"none of the {len(steps)} checkpoints in {self._folder} is intact; they are kept as .bad-*. "
                "Restore one from a backup, or remove the run folder to start from the beginning"
            )
        return None

    def named(self, which: str) -> Loaded:
        """`best` (or the last where no best is known), `last`, or a step number; verified. RefusedError when it is damaged."""
        index, steps = self.index, self.steps()
        by_name = {path.name: step for step, path in steps.items()}
        if which in ("best", "last"):
            name = index.get(which) or index.get("last")
            step = by_name.get(str(name), max(steps, default=-1))
        else:
            step = int(which) if which.isdigit() else -1
        if step not in steps:
            known = ", ".join(["best", "last", *map(str, steps)]) if steps else "none yet"
            raise RefusedError(f"no checkpoint '{which}' in {self._folder}; there are: {known}")
        try:
            return Loaded(steps[step], step, verify(steps[step]))
        except ValueError as error:
            raise RefusedError(f"checkpoint {steps[step]} is damaged: {error}") from None


def write_files(folder: Path, files: Mapping[str, memoryview], step: int) -> Facts:
    """Write files durably; their sizes and checksums by name."""
    facts: Facts = {}
    for name, data in files.items():
        facts[name] = {"size": data.nbytes, "sha256": _write(folder / name, data)}
        reached("save-" + name.partition(".")[0], step)
    return facts


def _write(path: Path, data: memoryview) -> str:
    """Write, hash and fsync in blocks: both release the interpreter, so that the training goes on meanwhile."""
    digest = hashlib.sha256()
    with path.open("wb", buffering=0) as file:
        for start in range(0, data.nbytes, _BLOCK):
            block = data[start : start + _BLOCK]
            digest.update(block)
            while block.nbytes:
                block = block[file.write(block) :]
        os.fsync(file.fileno())
    return digest.hexdigest()
