"""Trainers that have DeepSpeed's imports behind them, and what the shared-out runs are compared with."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.trainers import LIMIT, Zygote, points, run_file

PLAIN = {"args": {"norm": False, "dropout": 0.0}}
BARE = {"trainer.runtime.zero.PERSISTS": 0.0}


@pytest.fixture(scope="session")
def ready(zygote: Zygote) -> Zygote:
    """Its imports (torch's compiler, transformers) take longer than the runs of these tests."""
    modules = ("deepspeed", "deepspeed.runtime.zero.muon.muon_optimizer", "transformers.integrations.deepspeed")
    zygote.preload(*modules, env={"DS_ACCELERATOR": "cpu"})
    return zygote


@pytest.fixture
def trainers(ready: Zygote) -> Iterator[Zygote]:
    yield ready
    ready.clean()


def run(
    trainers: Zygote, file: Path, folder: Path, kind: str, *, world: int = 2, fault: str = "", args: tuple[str, ...] = (),
    bare: bool = True,
) -> list[int]:  # fmt: skip
    """Start the ranks of a run with a kind, and wait; the exit codes. `bare`: under zero3 every parameter is gathered, however
    small."""
    constants = BARE if kind == "zero3" and bare else None
    ranks = trainers.start(file, folder, world=world, fault=fault, args=(f"parallel.kind={kind}", *args), constants=constants)
    return [rank.wait(4 * LIMIT) for rank in ranks]  # each waits for the other several times a layer


def column(folder: Path, name: str) -> list[float]:
    """A figure of the record, point by point."""
    return [p[name] for p in points(folder) if name in p]


@pytest.fixture(scope="session")
def single(ready: Zygote, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The run of one rank that the others are compared with."""
    folder = tmp_path_factory.mktemp("single")
    assert ready.run(plain(folder), folder) == [0]
    return folder / "run"


def plain(folder: Path, **sections: Any) -> Path:
    """A run whose losses do not depend on how its samples are cut. Of 178 validation samples a first rank of three has 60, the
    others 59: one more forward pass."""
    return run_file(folder, model=PLAIN, optimizer={"kind": "adamw", "lr": 1e-2}, evaluate={"batch": 59}, **sections)
