"""The same losses, figures and weights for one rank and for two, whatever they share out, with and without accumulation."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from tests.faults.test_strategies import file
from tests.sharding.conftest import column, plain, run
from tests.trainers import Zygote, hashes, points
from trainer.checkpoint import averaged
from trainer.restored import restore
from trainer.rundir import RunDir

TOLERANCE = 1e-5  # of the losses; 1e-4 is asked for


def last(folder: Path) -> dict[str, torch.Tensor]:
    return averaged(max((folder / "checkpoints").glob("step-*")))


@pytest.mark.parametrize(
    ("kind", "passes", "offload"),
    [("ddp", "5", "none"), ("zero1", "auto", "none"), ("zero2", "5", "cpu"), *(
        (kind, passes, offload) for kind in ("zero3", "fsdp") for passes, offload in (("auto", "cpu"), ("5", "none"))
    )],
)  # fmt: skip
def test_every_kind_learns_what_one_rank_does(
    trainers: Zygote, single: Path, tmp_path: Path, kind: str, passes: str, offload: str
) -> None:
    """A rank's whole share at once, or in three passes a step."""
    args = (f"train.micro_batch={passes}", f"parallel.offload={offload}")
    assert run(trainers, plain(tmp_path), tmp_path, kind, args=args) == [0, 0], trainers.started[-2].text()
    found, wanted = column(tmp_path / "run", "train/loss"), column(single, "train/loss")
    assert len(found) == 40
    assert max(abs(a - b) for a, b in zip(found, wanted, strict=True)) < TOLERANCE
    assert wanted[-1] < wanted[0] - 0.3  # it learns
    for figure in ("val/loss", "val/accuracy"):
        assert column(tmp_path / "run", figure) == pytest.approx(column(single, figure), abs=1e-5)
    weights, reference = last(tmp_path / "run"), last(single)
    assert set(weights) == set(reference)
    assert all(torch.allclose(weights[n], reference[n], atol=1e-4) for n in reference if n != "mask")
    files = list((tmp_path / "run" / "checkpoints").glob("step-00000040/model*.safetensors"))
    assert len(files) == (3 if kind == "ddp" else 6)
    # what export, evaluate and predict read
    network = restore(RunDir(tmp_path / "run"), "last").network.state_dict()
    assert all(torch.equal(network[name], weights[name]) for name in weights)


def test_blocks_that_are_gathered_are_worked_out_again(trainers: Zygote, tmp_path: Path) -> None:
    """Under fsdp, with BatchNorm and dropout: equal to the bit."""
    folders = [tmp_path / "kept", tmp_path / "again"]
    for folder, again in zip(folders, ("false", "true"), strict=True):
        args = ("train.steps=8", f"train.checkpointing={again}")
        assert run(trainers, file(folder, {"kind": "blocks", "last": 2}), folder, "fsdp", args=args) == [0, 0]
    assert points(folders[0] / "run") == points(folders[1] / "run")
    assert hashes(folders[0] / "run") == hashes(folders[1] / "run")
