"""Strategies on two real data sets, as a table: `python -m benchmarks.strategies DATA` (about ten minutes on one core).

DATA holds `cifar10-jpeg/{train,test}`, `clothing/{train,validation}` (a folder a class each) and
`cifar-resnet20/resnet20-12fca82f.th`, a published checkpoint for CIFAR-10. One `graft matrix` runs it all, one run after the
other, one thread each; what is reported is the best accuracy, the seconds of training, and the memory that it took at most.
"""

from __future__ import annotations

import argparse
import csv
import json
import os
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
NETWORK = f"python:{ROOT}/benchmarks/resnet20.py:resnet20"
FULL = {"strategy": {"kind": "full"}}
STRATEGIES: dict[str, dict[str, Any]] = {
    "head": {"strategy": {"kind": "head"}},
    "last-3": {"strategy": {"kind": "blocks", "last": 3}},
    "gradual": {"strategy": {"kind": "gradual", "every": "20 steps", "blocks": 3}},
    "probe": {"strategy": {"kind": "probe", "probe": 0.3}},
    "norms": {"strategy": {"kind": "norms"}},
    "biases": {"strategy": {"kind": "biases"}},
    "lora": {"strategy": {"kind": "lora", "rank": 4}},
    "dora": {"strategy": {"kind": "lora", "method": "dora", "rank": 4}},
    "decay": {"strategy": {"kind": "full", "layer_decay": 0.8}},
    "full": FULL,
    "l2-sp": {**FULL, "optimizer.weight_decay": 0.0, "losses": {"add": {"near": {"kind": "l2_sp", "alpha": 0.1, "beta": 0.01}}}},
    "features": {**FULL, "losses": {"add": {"keep": {"kind": "features", "of": "start"}}}},
}


def files(data: Path, folder: Path) -> None:
    """The run file, and the matrix."""
    run = {
        "name": "strategies",
        "model": {"source": NETWORK, "weights": "none", "adapt": {"image_size": 32}},
        "strategy": {"kind": "full"},
        "data": {"train": f"folder:{data}/cifar10-jpeg/train", "augment": {"crop": "pad", "padding": 4, "flip": 0.5}},
        "optimizer": {"kind": "sgd", "lr": 0.01, "momentum": 0.9, "nesterov": True, "weight_decay": 1e-4},
        "train": {"global_batch": 64},
        "parallel": {"device": "cpu", "threads": 1},
        "evaluate": {"show": 0},
    }
    cifar = {"data.train": f"folder:{data}/cifar10-jpeg/train", "data.val": f"folder:{data}/cifar10-jpeg/test", "train.epochs": 4}
    clothes = {
        "data.train": f"folder:{data}/clothing/train", "data.val": f"folder:{data}/clothing/validation", "train.epochs": 8,
        "model.adapt.head": "new",
    }  # fmt: skip
    weights = str(data / "cifar-resnet20" / "resnet20-12fca82f.th")
    matrix = {
        "name": "strategies", "run": "run.yaml", "sources": {"resnet20": {"model.source": NETWORK, "model.weights": weights}},
        "targets": {"cifar-jpeg": cifar, "clothes": clothes}, "strategies": STRATEGIES, "scratch": {"optimizer.lr": 0.1},
    }  # fmt: skip
    (folder / "run.yaml").write_text(json.dumps(run))
    (folder / "strategies.yaml").write_text(json.dumps(matrix))


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.strategies", description=(__doc__ or "").splitlines()[0])
    parser.add_argument("data", type=Path)
    parser.add_argument("--keep", type=Path, help="the folder for the runs (default: one that is removed)")
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as name:
        folder = arguments.keep or Path(name)
        folder.mkdir(parents=True, exist_ok=True)
        files(arguments.data.resolve(), folder)
        command = [sys.executable, "-m", "launcher", "matrix", "strategies.yaml", "--local"]
        subprocess.run(command, cwd=folder, check=True, env={**os.environ, "PYTHONPATH": str(ROOT)})
        rows = list(csv.DictReader((folder / "runs" / "strategies" / "results.csv").open(encoding="utf-8")))
    table(rows)
    return 0


def table(rows: list[dict[str, str]]) -> None:
    """A line a strategy: accuracy, seconds and MiB on both targets."""
    print("| strategy | CIFAR as JPEG | s | MiB | clothes | s | MiB |\n|---|---|---|---|---|---|---|")
    found: dict[str, dict[str, dict[str, str]]] = {}
    for row in rows:
        found.setdefault(row["strategy"], {})[row["target"]] = row
    for strategy in [*STRATEGIES, "scratch"]:
        cells = []
        for target in ("cifar-jpeg", "clothes"):
            row = found[strategy][target]
            cells += [f"{float(row['best val/accuracy']):.1%}", f"{float(row['seconds']):.1f}", f"{int(row['peak_bytes']) >> 20}"]
        print(f"| {strategy} | {' | '.join(cells)} |")


if __name__ == "__main__":
    sys.exit(main())
