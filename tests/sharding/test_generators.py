"""A generator with an average, shared out: the same losses and images, though the ranks make unlike numbers of passes."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from tests.faults.test_diffusion import file, sheets
from tests.sharding.conftest import column, run
from tests.trainers import Zygote


@pytest.fixture(scope="module")
def whole(ready: Zygote, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """By two ranks that hold everything."""
    ready.preload("diffusers.models.unets.unet_2d", "diffusers.schedulers", "peft")
    folder = tmp_path_factory.mktemp("generator")
    assert run(ready, small(folder), folder, "ddp") == [0, 0]
    return folder / "run"


def small(folder: Path) -> Path:
    """Ten images in batches of four: two batches for the first rank, one for the other."""
    return file(
        folder, dropout=0.0, task={"samples": {"steps": 3, "count": 10, "batch": 4}}, strategy={"kind": "full"},
        train={"steps": 8, "micro_batch": 6, "ema": 0.9}, evaluate={"every": "8 steps", "batch": 59},
    )  # fmt: skip


@pytest.mark.parametrize("kind", ["zero2", "zero3", "fsdp"])
def test_a_generator_learns_and_makes_the_same(trainers: Zygote, whole: Path, tmp_path: Path, kind: str) -> None:
    assert run(trainers, small(tmp_path), tmp_path, kind, bare=False) == [0, 0], trainers.started[-1].text()
    for name, count in (("train/loss", 8), ("val/loss", 1)):
        wanted = column(whole, name)
        assert len(wanted) == count
        assert column(tmp_path / "run", name) == pytest.approx(wanted, abs=2e-5)
    (one,), (other,) = (list(sheets(folder).values()) for folder in (whole, tmp_path / "run"))
    assert np.abs(one.astype(int) - other).max() <= 1, "to the rounding of a step of 255"
