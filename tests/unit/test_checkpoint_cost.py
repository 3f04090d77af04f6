"""What a checkpoint costs: measured from the step path, with the write apart."""

from __future__ import annotations

import threading
import time
from pathlib import Path

import pytest
import torch

from trainer.checkpoint import Cost, Saver, Store, longest
from trainer.checkpoint.cost import Shadow
from trainer.checkpoint.staging import StagedFile


class Now:
    """A clock that is set by hand."""

    now = 0.0

    def perf_counter(self) -> float:
        return self.now


def test_the_shadow_compares_whole_steps_within_a_write_with_whole_steps_outside(monkeypatch: pytest.MonkeyPatch) -> None:
    clock, shadow = Now(), Shadow()
    monkeypatch.setattr("trainer.checkpoint.cost.time", clock)

    def step(seconds: float, writing: bool = False) -> None:
        clock.now += seconds
        shadow.step(writing)

    for seconds in (9.0, 1.0, 1.0, 1.0):  # there is nothing that the first is counted from
        step(seconds)
    shadow.aside()
    step(50.0)  # with an evaluation in it
    shadow.begin()
    step(50.0, writing=True)  # with the copy in it
    step(1.5, writing=True)
    step(1.5, writing=True)
    assert shadow.ratio() is None
    step(1.5, writing=True)
    step(50.0)  # the write ended in it
    assert shadow.ratio() == 1.5
    shadow.begin()
    assert shadow.ratio() is None


def test_a_save_copies_into_memory_that_was_there_and_does_not_wait_for_the_write(tmp_path: Path) -> None:
    go, costs = threading.Event(), list[Cost]()

    def write() -> None:
        assert go.wait(10)

    saver = Saver(Store(tmp_path, keep=2), before_write=write, on_commit=lambda step: None, on_cost=costs.append)
    tensors = {"w": torch.ones(1000), "b": torch.zeros(3)}
    saver.reserve({"model.safetensors": tensors})
    memory = saver._staged["model.safetensors"]
    place = memory._memory.data_ptr()
    for _ in range(5):
        saver.stepped()
    saver.save(1, {"model.safetensors": tensors}, {"samples": 8})
    assert saver.busy  # and the training goes on
    tensors["w"].zero_()
    for _ in range(5):
        time.sleep(0.01)
        saver.stepped()
    threading.Timer(0.2, go.set).start()
    saver.save(2, {"model.safetensors": tensors}, {"samples": 16})  # has to wait for the first, which counts as its hold-up
    saver.join()
    assert saver._staged["model.safetensors"] is memory
    assert memory._memory.data_ptr() == place
    first, second = costs
    assert (first.step, second.step) == (1, 2)
    assert first.stall_s < 0.1 < 0.15 < second.stall_s
    assert first.write_s > 0.2
    size = (tmp_path / "step-00000001" / "model.safetensors").stat().st_size
    assert first.bytes == second.bytes == size
    assert first.shadow is not None
    assert first.shadow > 10
    assert second.shadow is None  # not one step in it
    assert longest(costs) == {
        "checkpoint/stall_s": second.stall_s, "checkpoint/write_s": first.write_s, "checkpoint/bytes": size,
        "checkpoint/shadow": first.shadow,
    }  # fmt: skip
    saver.save(2, {"model.safetensors": tensors}, {"samples": 16}, wait=True)
    assert len(costs) == 2  # it was there: nothing was written
    saver.save(3, {"model.safetensors": tensors}, {"samples": 24}, wait=True, since=time.perf_counter() - 5)
    assert 5 < costs[-1].stall_s < 6
    assert costs[-1].write_s < 1


def test_the_memory_of_a_checkpoint_is_touched_when_it_is_allocated() -> None:
    """Else the first checkpoint pays for every page."""

    def resident() -> int:
        return int(Path("/proc/self/statm").read_text().split()[1]) * 4096

    weights = torch.zeros(1).expand(16 << 20)  # 64 MiB that take no memory
    before = resident()
    file = StagedFile({"w": weights})
    assert resident() - before > 60 << 20
    assert file.data.nbytes > 64 << 20
