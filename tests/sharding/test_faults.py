"""Numbers that are not finite, ranks that hang or are slow, files that cannot be written, and losses beside the task's."""

from __future__ import annotations

import json
import os
import threading
from pathlib import Path
from typing import Any

import pytest
import torch

from tests.faults.test_hang import hanging
from tests.faults.test_losses import LOSSES, file
from tests.sharding.conftest import BARE, column, plain, run
from tests.trainers import Zygote, points, run_file
from trainer.checkpoint import Cost, Saver, Store, read
from trainer.checkpoint.saver import Others
from trainer.rundir import RunDir, read_points
from trainer.spec import Piece


@pytest.mark.parametrize("kind", ["zero2", "zero3", "fsdp"])
def test_a_nan_on_one_rank_is_skipped_by_all(trainers: Zygote, tmp_path: Path, kind: str) -> None:
    """Neither weights nor the optimizer's state move in the meantime."""
    args = {"nan_rank": 1, "nan_at": 9, "nan_for": 2}
    often = {"every": "1 steps", "keep": 20}
    path = run_file(tmp_path, model={"args": args}, train={"steps": 14, "max_skipped": 2}, checkpoint=often)
    assert run(trainers, path, tmp_path, kind) == [0, 0]
    skips = [p for p in points(tmp_path / "run") if "skipped" in p]
    assert [p["skipped"] for p in skips] == [1.0, 2.0]
    assert all("rank 1" in p["why"] for p in skips)
    before, after = (weights(tmp_path / "run", step) for step in (skips[0]["step"] - 1, skips[1]["step"]))
    assert all(torch.equal(before[name], after[name]) for name in before)
    assert not torch.equal(after["head.weight"], weights(tmp_path / "run", 14)["head.weight"])
    folder = RunDir(tmp_path / "run")
    costs = [p for p in read_points(folder.metrics) if "checkpoint/stall_s" in p]
    assert costs
    assert all(p["checkpoint/stall_s"] > 0 and p["checkpoint/write_s"] > 0 for p in costs)
    written = sum(path.stat().st_size for path in (folder.checkpoints / "step-00000014").glob("*.safetensors"))
    assert folder.read_json(folder.summary)["checkpoint"]["checkpoint/bytes"] == written  # of both ranks


def weights(folder: Path, step: int) -> dict[str, torch.Tensor]:
    held = read(folder / "checkpoints" / f"step-{step:08d}")
    tensors = held["model.safetensors"].whole() | held["model-optimizer.safetensors"].whole()
    return {name: value for name, value in tensors.items() if "running" not in name and "num_batches" not in name}


def test_too_many_nans_stop_all_ranks(trainers: Zygote, tmp_path: Path) -> None:
    path = run_file(tmp_path, model={"args": {"nan_rank": 1, "nan_at": 9, "nan_for": 100}}, train={"max_skipped": 3})
    for kind in ("zero2", "fsdp"):
        assert run(trainers, path, tmp_path / kind, kind) == [1, 1]
        marker = RunDir(tmp_path / kind / "run").marker()
        assert marker is not None
        assert "4 steps in a row" in marker.reason
        assert all(v.isfinite().all() for n, v in weights(tmp_path / kind / "run", 7).items() if n != "mask")


@pytest.mark.parametrize(
    ("name", "kinds"),
    [("dwa", ["zero1"]), ("near", ["zero2"]), ("distilled", ["zero3", "fsdp"]), ("uncertainty", ["zero3", "fsdp"])],
)
def test_further_losses(trainers: Zygote, tmp_path: Path, name: str, kinds: list[str]) -> None:
    """A teacher's answers and features with what is learnt to compare them, weights near their start, and balances."""
    found = []
    for own in ("ddp", *kinds):
        path = file(tmp_path / own, name, dropout=0.0, norm=False)
        args = ("train.micro_batch=6", "train.steps=12", "optimizer.lr=0.01")
        assert run(trainers, path, tmp_path / own, own, args=args) == [0, 0], trainers.started[-2].text()
        names = [f"{part}/{n}" for n in ("task", *LOSSES[name]["add"]) for part in ("loss", "weight")]
        found.append([column(tmp_path / own / "run", n) for n in ("train/loss", *names)])
    for other in found[1:]:
        assert torch.tensor(found[0]).allclose(torch.tensor(other), atol=2e-5, rtol=1e-4)


def test_a_rank_that_hangs_is_named(trainers: Zygote, tmp_path: Path) -> None:
    """The others wait for it where the weights are gathered."""
    started = {}
    for kind in ("zero3", "fsdp"):
        path = run_file(tmp_path / kind, parallel={"timeout": 3, "kind": kind}, **hanging(1, "forward"))
        started[kind] = trainers.start(path, tmp_path / kind, world=2, constants=BARE)
    for kind, ranks in started.items():
        assert [rank.wait() for rank in ranks] == [1, 1]
        marker = RunDir(tmp_path / kind / "run").marker()
        assert marker is not None
        assert "rank 1 (process" in marker.reason
        assert "in forward" in marker.reason


def test_a_slow_rank_is_reported(trainers: Zygote, tmp_path: Path) -> None:
    """Though all ranks wait for it in every layer, and take as long as it does."""
    started = {}
    for kind in ("zero2", "zero3", "fsdp"):
        path = plain(
            tmp_path / kind, train={"steps": 30, "micro_batch": 6}, parallel={"kind": kind}, checkpoint={"every": "1 h"},
        )  # fmt: skip
        changed = json.loads(path.read_text())
        changed["model"]["args"] |= {"slow": 0.06, "slow_rank": 1}
        changed["evaluate"]["every"] = "100 epochs"
        path.write_text(json.dumps(changed))
        constants = {"trainer.straggler.COMPARE_EVERY": 0.4, **BARE}
        started[kind] = trainers.start(path, tmp_path / kind, world=2, constants=constants)
    for kind, ranks in started.items():
        assert [rank.wait() for rank in ranks] == [0, 0]
        events = read_points(tmp_path / kind / "run" / "attempts.jsonl")
        (told,) = [e for e in events if e["event"] == "straggler"]
        assert told["rank"] == 1, kind
        assert told["seconds"] > 0.12 > told["median"] + 0.03, kind


class Ranks:
    """Savers of two ranks in threads of one process."""

    def __init__(self, world: int) -> None:
        self.barrier, self.box = threading.Barrier(world, timeout=20), [None] * world

    def of(self, rank: int) -> Others:
        ranks = self

        class Of:
            def __init__(self) -> None:
                self.rank, self.world = rank, len(ranks.box)

            def gather(self, value: Any) -> list[Any]:
                ranks.box[rank] = value
                ranks.barrier.wait()
                found = list(ranks.box)
                ranks.barrier.wait()
                return found

            def tell(self, value: Any) -> Any:
                return self.gather(value)[0]

        return Of()


def test_a_checkpoint_of_several_ranks_is_there_whole_or_not_at_all(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    ranks, store = Ranks(2), Store(tmp_path, keep=2)
    costs: list[list[Cost]] = [[], []]
    savers = [
        Saver(store, before_write=lambda: None, on_commit=lambda step: None, others=ranks.of(rank), on_cost=costs[rank].append)
        for rank in range(2)
    ]
    values = torch.arange(12.0)

    def save(step: int) -> list[str]:
        pieces: list[dict[str, torch.Tensor | Piece]] = [
            {"w": Piece(values[:5] + step, 0, (3, 4))},
            {"w": Piece(values[5:] + step, 5, (3, 4)), "scale": torch.ones(())},
        ]
        for saver, piece in zip(savers, pieces, strict=True):
            saver.save(step, {"model.safetensors": piece}, {"samples": step})
        for saver in savers:
            saver.wait()
        return [str(saver._failure) for saver in savers]

    full = [True]
    really = os.fsync

    def fsync(handle: int) -> None:
        if full and "00001-of-00002" in str(Path(f"/proc/self/fd/{handle}").readlink()):
            raise OSError(28, "No space left on device")
        really(handle)

    monkeypatch.setattr("trainer.checkpoint.store.os.fsync", fsync)
    assert save(1) == ["[Errno 28] No space left on device"] * 2
    assert all(saver._failed_at is not None for saver in savers)
    assert list(tmp_path.iterdir()) == []
    full.clear()
    assert save(2) == ["None", "None"]
    loaded = store.last_good()
    assert loaded is not None
    held = read(loaded.path)["model.safetensors"]
    assert torch.equal(held["w"], (values + 2).view(3, 4))
    assert torch.equal(held.piece("w", 3, 6), values[3:9] + 2)
    assert held["scale"] == 1
    ((cost,), of_others) = costs  # of the failed one there is none
    assert of_others == []
    assert cost.bytes == sum(path.stat().st_size for path in loaded.path.glob("*.safetensors"))
    assert 0 < cost.stall_s < 20
    values[7] = torch.nan
    assert save(3) == ["'w' in model.safetensors of step 3 holds values that are not finite numbers"] * 2
    assert list(store.steps()) == [2]
