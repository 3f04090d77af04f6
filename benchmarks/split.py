"""One rank of 8, two ranks of 4, and 2 x 4 accumulated give the same losses: `python -m benchmarks.split`."""

from __future__ import annotations

import sys
import tempfile
from pathlib import Path

from tests.trainers import Zygote, points, run_file

WAYS = {"one rank, micro-batch 8": (1, 8), "two ranks, micro-batch 4": (2, 4), "one rank, accumulation 2 x 4": (1, 4)}


def main() -> int:
    zygote = Zygote()
    losses: dict[str, list[float]] = {}
    try:
        with tempfile.TemporaryDirectory() as name:
            for place, (way, (world, micro)) in enumerate(WAYS.items()):
                folder = Path(name) / str(place)
                run = run_file(
                    folder, model={"args": {"norm": False, "dropout": 0.0}}, optimizer={"lr": 1e-2},
                    train={"steps": 50, "global_batch": 8, "micro_batch": micro},
                )  # fmt: skip
                if zygote.run(run, folder, world=world) != [0] * world:
                    raise SystemExit(f"{way}: the run failed")
                losses[way] = [p["train/loss"] for p in points(folder / "run") if "train/loss" in p]
    finally:
        zygote.close()
    whole = losses[next(iter(WAYS))]
    for way, values in losses.items():
        worst = max(abs(a - b) for a, b in zip(whole, values, strict=True))
        print(f"{way}: {len(values)} losses, {values[0]:.4f} to {values[-1]:.4f}, at most {worst:.1e} from the first (goal 1e-5)")
    return 0


if __name__ == "__main__":
    sys.exit(main())
