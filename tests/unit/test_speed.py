"""What the record says of time: samples a second, the wait for data, MFU, what is left."""

from __future__ import annotations

import subprocess
import time
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from launcher.detail import detail
from tests.trainers import NETWORK, Zygote, run_file
from trainer import memory
from trainer.config import load
from trainer.config.alike import alike, between
from trainer.config.peaks import PEAKS, peak
from trainer.counted import count
from trainer.operations import Counting, at
from trainer.rundir import RunDir, read_points
from trainer.timing import Timing
from trainer.track import speed
from trainer.track.speed import Machinery, Speed

DEEP = {"source": f"python:{NETWORK}:deep", "adapt": {"in_channels": 1, "image_size": 32}}


def test_where_the_time_of_steps_goes() -> None:
    timing = Timing(batch=8)
    for seconds, waited in ((0.5, 0.1), (1.5, 0.3)):
        timing.step(seconds)
        timing.waited(waited)
    assert timing.figures() == {
        "speed/samples_per_second": 8.0, "speed/step_seconds": 1.0, "speed/data_wait_seconds": 0.2, "speed/data_wait": 0.2,
    }  # fmt: skip
    assert timing.figures() == {}


def test_mfu_is_only_of_cards_that_are_known(tmp_path: Path) -> None:
    run = load(run_file(tmp_path), [])
    half = run.model_copy(update={"train": run.train.model_copy(update={"precision": "bf16"})})
    assert peak("NVIDIA H100 80GB HBM3", half, tf32=True) == 989.4e12
    assert peak("NVIDIA H100 PCIe", half, tf32=True) == 756e12
    assert peak("NVIDIA A100-SXM4-40GB", run, tf32=True) == 156e12
    assert peak("NVIDIA A100-SXM4-40GB", run, tf32=False) == 19.5e12
    for device in ("AMD EPYC", "NVIDIA A10G", "NVIDIA A100-SXM4-40GB MIG 1g.5gb", "NVIDIA H100 80GB HBM3e"):
        assert peak(device, half, tf32=True) is None
    assert peak("Tesla V100-SXM2-32GB", half, tf32=False) is None  # it has no bf16
    assert len({one.name for one in PEAKS}) == len(PEAKS)


def test_speed_says_mfu_and_what_is_left(monkeypatch: pytest.MonkeyPatch) -> None:
    clock = SimpleNamespace(now=100.0)
    clock.monotonic = lambda: clock.now
    monkeypatch.setattr(speed, "time", clock)
    counting: Any = lambda samples: 5e9 if samples < 300 else 1e10  # noqa: E731
    found = Speed(Machinery("card", world=2, gpus=2, threads=1, peak=2e12), 1000, "key", "between", counting)
    first = found.figures({"speed/samples_per_second": 40.0, "speed/data_wait": 0.5}, 100)
    assert first == {"speed/mfu": 0.1}
    clock.now += 10.0  # 20 samples a second over all, though the steps alone make 100
    second = found.figures({"speed/samples_per_second": 100.0, "speed/data_wait": 0.1}, 300)
    assert second == {"speed/mfu": 0.5, "speed/eta_seconds": 35.0, "speed/gpu_hours_left": 35.0 * 2 / 3600}
    assert found.figures({"train/epoch_loss": 1.0}, 300) == {}
    summary = found.summary()
    assert summary is not None
    assert (summary["samples_per_second"], summary["overall"], summary["data_wait"], summary["points"]) == (100, 20, 0.1, 1)
    unknown = Speed(Machinery("cpu", world=1, gpus=0, threads=1, peak=None), 1000, "key", "between", None)
    assert unknown.figures({"speed/samples_per_second": 40.0}, 100) == {}
    assert unknown.summary() is None


def test_operations_are_those_of_the_layers(tmp_path: Path) -> None:
    """Two for each product; the first layer's input needs no gradient, and a frozen layer no gradient of its weights."""
    (tmp_path / "net.py").write_text(
        "from torch import nn\n\ndef make():\n"
        "    return nn.Sequential(nn.Flatten(), nn.Linear(64, 50, bias=False), nn.ReLU(), nn.Linear(50, 5))\n"
    )
    model = {"source": f"python:{tmp_path / 'net.py'}:make", "adapt": {"in_channels": 1, "image_size": 8}}

    def of(**more: Any) -> list[tuple[int, float]]:
        return count(load(run_file(tmp_path, model=model, **more), []), 1)

    first, last = 2 * 64 * 50, 2 * 50 * 5
    assert of() == [(0, 2 * first + 3 * last)]
    assert of(strategy={"kind": "head"}, data={"train": "digits:0-4/train", "cache": "none"}) == [(0, first + 2 * last)]
    gradual = of(strategy={"kind": "gradual", "every": "64 samples"}, data={"train": "digits:0-4/train", "cache": "none"})
    assert [work for _, work in gradual] == sorted({work for _, work in gradual})
    assert at(gradual, gradual[-1][0] - 1) == gradual[-2][1]


def test_blocks_worked_out_again_are_no_work_of_the_model(tmp_path: Path) -> None:
    def of(name: str, **train: Any) -> list[tuple[int, float]]:
        return count(load(run_file(tmp_path / name, model=DEEP, train={"global_batch": 8, **train}), []), 1)

    assert of("a", checkpointing=True) == of("b")


def test_a_process_beside_the_training_counts(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = RunDir(tmp_path / "run")
    folder.path.mkdir()
    run = load(run_file(tmp_path, model=DEEP), [])
    folder.prepare(run, accept_changes=False)
    counting = Counting(folder, run, 1, 10**6)
    assert counting(0) is None
    until = time.monotonic() + 60
    while counting(0) is None:
        assert time.monotonic() < until
        time.sleep(0.05)
    assert counting(0) == count(run, 1)[0][1]
    counting.close()
    again = Counting(folder, run, 1, 10**6)
    assert again(0) == counting(0)  # kept, and not counted again
    again.close()
    other = run.model_copy(update={"train": run.train.model_copy(update={"global_batch": 2})})
    started = list[Any]()
    monkeypatch.setattr(subprocess, "Popen", lambda *words, **more: started.append(words))
    changed = Counting(folder, other, 1, 10**15)  # a network that does not fit beside the training
    assert changed(0) is None
    assert not started
    changed.close()
    Counting(folder, other, 1, 10**6).close()
    assert any("--memory=" in word for word in started[0][0])


def test_room_is_what_the_groups_of_a_process_leave(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    deep = tmp_path / "job" / "step"
    deep.mkdir(parents=True)
    monkeypatch.setattr(memory, "_GROUPS", tmp_path)
    monkeypatch.setattr(memory, "_OWN", tmp_path / "own")
    free = memory.available()
    (tmp_path / "own").write_text("0::/job/step\n")
    (deep / "memory.max").write_text("max\n")
    assert memory.available() > free / 2
    for name, value in (("max", "1000"), ("current", "700"), ("stat", "anon 500\ninactive_file 150")):
        (tmp_path / "job" / f"memory.{name}").write_text(f"{value}\n")
    assert memory.available() == 450
    old = tmp_path / "memory" / "job"
    old.mkdir(parents=True)
    (tmp_path / "own").write_text("4:memory:/job\n0::/\n")
    for name, value in (("limit_in_bytes", "900"), ("usage_in_bytes", "700"), ("stat", "total_inactive_file 50")):
        (old / f"memory.{name}").write_text(f"{value}\n")
    assert memory.available() == 250


def test_what_goes_at_the_same_speed(tmp_path: Path) -> None:
    run = load(run_file(tmp_path), [])
    assert alike(run) == alike(load(run_file(tmp_path), ["optimizer.lr=0.5", "train.seed=7"]))
    assert alike(run) != alike(load(run_file(tmp_path), ["model.adapt.image_size=16"]))
    assert alike(run) != alike(load(run_file(tmp_path), ["train.precision=bf16"]))


def test_a_run_records_it(tmp_path: Path, zygote: Zygote) -> None:
    assert zygote.run(run_file(tmp_path, track={"every": 2}), tmp_path, world=2) == [0, 0]
    folder = RunDir(tmp_path / "run")
    said = [point for point in read_points(folder.metrics) if "train/loss" in point]
    assert all(0 <= point["speed/data_wait"] <= 1 and point["speed/samples_per_second"] > 0 for point in said)
    assert said[-1]["speed/eta_seconds"] == 0
    assert not any("speed/mfu" in point or "speed/gpu_hours_left" in point for point in said)
    summary = folder.read_json(folder.summary)["speed"]
    assert (summary["alike"], summary["between"]) == (alike(folder.load()), between(folder.load()))
    assert (summary["world"], summary["gpus"], summary["threads"]) == (2, 0, 1)
    assert summary["quartiles"][0] <= summary["samples_per_second"] <= summary["quartiles"][1]
    assert f"{summary['samples_per_second']:,.4g} samples/s within steps" in detail(folder).text()
