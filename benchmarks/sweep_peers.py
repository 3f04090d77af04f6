"""What `benchmarks.sweep` starts in the peers' environment: `python -m benchmarks.sweep_peers hydra|submitit FOLDER MEMBERS`.

FOLDER holds `run.yaml`. hydra: every member composed and written. submitit: a function of every member's values as one array.
"""

from __future__ import annotations

import random
import sys
from pathlib import Path
from typing import Any


def members(count: int) -> list[dict[str, Any]]:
    """Values as the sweep draws them."""
    draw = random.Random(0)
    return [
        {
            "optimizer.lr": 10 ** draw.uniform(-5, -2),
            "optimizer.weight_decay": draw.uniform(0, 0.1),
            "train.seed": draw.randint(0, 99),
        }
        for _ in range(count)
    ]


def hydra(folder: Path, count: int) -> None:
    from hydra import compose, initialize_config_dir
    from omegaconf import OmegaConf

    with initialize_config_dir(version_base=None, config_dir=str(folder)):
        for number, member in enumerate(members(count)):
            config = compose(config_name="run", overrides=[f"++{key}={value}" for key, value in member.items()])
            out = folder / "rendered" / f"{number:04d}" / "run.yaml"
            out.parent.mkdir(parents=True)
            out.write_text(OmegaConf.to_yaml(config), encoding="utf-8")


def play(member: dict[str, Any]) -> dict[str, Any]:
    """In place of a training: nothing is to start."""
    return member


def submitit(folder: Path, count: int) -> None:
    import submitit as library

    executor = library.AutoExecutor(folder=folder / "jobs", cluster="slurm")
    executor.update_parameters(timeout_min=60, slurm_partition="main", slurm_array_parallelism=8)
    executor.map_array(play, members(count))


if __name__ == "__main__":
    {"hydra": hydra, "submitit": submitit}[sys.argv[1]](Path(sys.argv[2]), int(sys.argv[3]))
