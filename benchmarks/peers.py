"""The environment of the peers: `python -m benchmarks.peers` makes `benchmarks/.peers` with what `peers.txt` says.

It is a venv of its own that sees what graft's environment has after what it has itself: torch is there once.
"""

from __future__ import annotations

import importlib.util
import os
import site
import subprocess
import sys
import sysconfig
from pathlib import Path
from typing import NoReturn

HERE = Path(__file__).resolve().parent
ROOT = HERE.parent
FOLDER, PINNED = HERE / ".peers", HERE / "peers.txt"
PYTHON = FOLDER / "bin" / "python"
DONE = FOLDER / "installed.txt"


def make() -> None:
    """Make the environment, or make it anew where `peers.txt` has changed."""
    wanted = PINNED.read_text(encoding="utf-8") + sys.prefix
    if DONE.exists() and DONE.read_text(encoding="utf-8") == wanted:
        return
    subprocess.run([sys.executable, "-m", "venv", "--clear", str(FOLDER)], check=True)
    own = Path(sysconfig.get_path("purelib", vars={"base": str(FOLDER)}))
    # addsitedir and not the bare path: so the .pth files there count, among them that of an editable graft
    lines = [f"import site; site.addsitedir({folder!r})" for folder in site.getsitepackages()]
    (own / "graft.pth").write_text("\n".join([*lines, str(ROOT)]) + "\n", encoding="utf-8")
    command = [str(PYTHON), "-m", "pip", "install", "--disable-pip-version-check", "--quiet", "-r", str(PINNED)]
    subprocess.run(command, check=True)
    DONE.write_text(wanted, encoding="utf-8")


def within(module: str, *needed: str) -> None:
    """Go on as `module` in the peers' environment when this one lacks what is `needed`."""
    if not all(importlib.util.find_spec(name) for name in needed):
        _again(module)


def _again(module: str) -> NoReturn:
    if not PYTHON.exists() or Path(sys.prefix) == FOLDER:
        raise SystemExit(
            f"{module} measures against what is not installed; make the peers' environment: python -m benchmarks.peers"
        )
    os.execv(PYTHON, [str(PYTHON), "-m", module, *sys.argv[1:]])


def main() -> int:
    make()
    print(f"{FOLDER} has what {PINNED.name} says")
    return 0


if __name__ == "__main__":
    sys.exit(main())
