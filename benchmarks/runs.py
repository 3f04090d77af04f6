"""How long `graft runs` takes over a thousand run folders: `python -m benchmarks.runs`."""

from __future__ import annotations

import sys
import tempfile
from pathlib import Path
from statistics import median

from benchmarks.startup import imports_torch, seconds
from tests.unit.folders import crowd

COUNT, TIMES = 1000, 11


def main() -> int:
    graft = str(Path(sys.executable).with_name("graft"))
    with tempfile.TemporaryDirectory() as name:
        arguments = ["runs", "--runs", str(crowd(Path(name), COUNT))]
        taken = sorted(seconds([graft, *arguments]) for _ in range(TIMES))
        torch = "imports torch" if imports_torch(arguments) else "no torch"
    spread = f"{taken[0]:.3f} to {taken[-1]:.3f} of {TIMES}"
    print(f"graft runs ({COUNT:,} run folders of 400 points): median {median(taken):.3f} s, {spread} (goal 1 s), {torch}")
    python = sorted(seconds([sys.executable, "-c", "pass"]) for _ in range(TIMES))
    print(f"bare python: median {median(python):.3f} s")
    return 0


if __name__ == "__main__":
    sys.exit(main())
