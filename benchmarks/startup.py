"""How long `graft --help` and `graft plan` take, and that neither imports torch: `python -m benchmarks.startup`."""

from __future__ import annotations

import json
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from statistics import median

from PIL import Image

TIMES = 11
RUN = {
    "name": "plan", "model": {"source": "torchvision:resnet50", "weights": "DEFAULT"}, "strategy": {"kind": "head"},
    "optimizer": {"kind": "adam", "lr": 1e-3},
}  # fmt: skip


def seconds(command: list[str]) -> float:
    """The wall time of a command, which must succeed."""
    began = time.perf_counter()
    subprocess.run(command, check=True, stdout=subprocess.DEVNULL)
    return time.perf_counter() - began


def imports_torch(arguments: list[str]) -> bool:
    code = (
        "import sys; from launcher.cli import main\n"
        f"sys.argv = ['graft', *{arguments!r}]\n"
        "try: main()\nexcept SystemExit: pass\n"
        "sys.exit('torch' in sys.modules)"
    )
    return subprocess.run([sys.executable, "-c", code], stdout=subprocess.DEVNULL).returncode != 0


def main() -> int:
    graft = str(Path(sys.executable).with_name("graft"))
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        for split, count in (("train", 900), ("val", 100)):
            for number in range(count):
                path = folder / split / f"class{number % 10}" / f"{number:04d}.png"
                path.parent.mkdir(parents=True, exist_ok=True)
                Image.new("RGB", (8, 8)).save(path)
        data = {"train": f"folder:{folder}/train", "val": f"folder:{folder}/val"}
        run = folder / "run.yaml"
        run.write_text(json.dumps({**RUN, "data": data}), encoding="utf-8")
        commands = {"graft --help": (["--help"], 0.25), "graft plan (1,000 images)": (["plan", str(run), "--no-memory"], 0.5)}
        for what, (arguments, goal) in commands.items():
            taken = sorted(seconds([graft, *arguments]) for _ in range(TIMES))
            torch = "imports torch" if imports_torch(arguments) else "no torch"
            print(f"{what}: median {median(taken):.3f} s, {taken[0]:.3f} to {taken[-1]:.3f} of {TIMES} (goal {goal} s), {torch}")
    python = sorted(seconds([sys.executable, "-c", "pass"]) for _ in range(TIMES))
    print(f"bare python: median {median(python):.3f} s")
    return 0


if __name__ == "__main__":
    sys.exit(main())
