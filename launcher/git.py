"""git, asked about a repository that it only reads."""

from __future__ import annotations

import os
import shutil
import subprocess
from pathlib import Path

from trainer.config import RefusedError

_TIMEOUT = 300.0  # seconds
_QUIET = ("core.hooksPath=/dev/null", "core.fsmonitor=false", "core.safecrlf=false", "core.looseCompression=0")


def git(folder: Path, *words: str, environment: dict[str, str] | None = None, stdin: bytes = b"") -> bytes:
    """What a git command prints. RefusedError with its own words when it fails."""
    kept = {k: v for k, v in os.environ.items() if not k.startswith("GIT_") or k.startswith("GIT_CONFIG")}
    settings = [word for setting in _QUIET for word in ("-c", setting)]
    try:
        done = subprocess.run(
            ["git", *settings, *words], cwd=folder, input=stdin, capture_output=True, timeout=_TIMEOUT, check=False,
            env={**kept, "LC_ALL": "C", "GIT_OPTIONAL_LOCKS": "0", "GIT_TERMINAL_PROMPT": "0", **(environment or {})},
        )  # fmt: skip
    except subprocess.TimeoutExpired:
        raise RefusedError(f"git {words[0]} took more than {_TIMEOUT:.0f} s in {folder}") from None
    if done.returncode != 0:
        said = done.stderr.decode(errors="replace").strip() or f"exit code {done.returncode}"
        raise RefusedError(f"git {words[0]} in {folder}: {said}")
    return done.stdout


def head(top: Path) -> str | None:
    """The commit; none before the first."""
    try:
        return os.fsdecode(git(top, "rev-parse", "--verify", "-q", "HEAD^{commit}").strip())
    except RefusedError:
        return None


def own_index(top: Path, scratch: Path) -> dict[str, str]:
    """The environment in which git works on a copy of the index and writes objects to a folder of ours."""
    index = top / os.fsdecode(git(top, "rev-parse", "--git-path", "index").removesuffix(b"\n"))
    objects = top / os.fsdecode(git(top, "rev-parse", "--git-path", "objects").removesuffix(b"\n"))
    (scratch / "objects").mkdir()
    if index.exists():
        # with its time: a file that changed in the second in which the index was written is known by that alone
        shutil.copy2(index, scratch / "index")
    quoted = str(objects).replace("\\", "\\\\").replace('"', '\\"')
    return {
        "GIT_INDEX_FILE": str(scratch / "index"), "GIT_OBJECT_DIRECTORY": str(scratch / "objects"),
        "GIT_ALTERNATE_OBJECT_DIRECTORIES": f'"{quoted}"',
    }  # fmt: skip
