"""Parts of the trainer's core, one at a time."""

from __future__ import annotations

import json
import threading
import time
from functools import partial
from pathlib import Path

import pytest
import torch
from torch import nn

from trainer.checkpoint import Saver, Store
from trainer.checkpoint.store import write_files
from trainer.config import RefusedError, UserError
from trainer.journal import Journal
from trainer.optim import Average
from trainer.restored import device_of
from trainer.rundir import Lease, LeaseLostError, RunDir


class Tied(nn.Module):
    """Two layers that are one."""

    def __init__(self) -> None:
        super().__init__()
        self.a = nn.Linear(4, 4)
        self.b = nn.Linear(4, 4)
        self.b.weight = self.a.weight
        self.norm = nn.BatchNorm1d(4)


def test_the_average_of_tied_layers_is_exchanged_and_put_back() -> None:
    network = Tied()
    tensors = network.state_dict(keep_vars=True)
    learning = {name: value for name, value in tensors.items() if isinstance(value, nn.Parameter)}
    average = Average(learning, {n: value for n, value in tensors.items() if n not in learning}, 0.5)
    with torch.no_grad():
        network.a.weight.add_(1)
    before = {name: value.clone() for name, value in network.state_dict().items()}
    held = {name: value.clone() for name, value in average.state.items()}
    average.swap()
    assert torch.equal(network.a.weight, held["a.weight"])
    assert torch.equal(average.state["b.weight"], before["b.weight"])
    average.swap()
    assert all(torch.equal(before[name], value) for name, value in network.state_dict().items())
    average.update(100)
    assert set(average.state) == set(held)
    assert torch.allclose(average.state["b.weight"], (before["b.weight"] + held["b.weight"]) / 2)


def test_the_same_failure_of_other_processes_is_the_same_failure(tmp_path: Path) -> None:
    folder = RunDir(tmp_path)
    for attempt in range(1, 4):
        journal = Journal(folder, main=True, world=2, retry=False)
        assert journal.attempt == attempt
        journal.started(20)
        journal.ended("FAILED", 24, f"rank 1 (process {attempt}17 on node) died at step 24")
    with pytest.raises(RefusedError, match="process 317 on node"):
        Journal(folder, main=True, world=2, retry=False)
    assert Journal(folder, main=True, world=2, retry=True).attempt == 4


@pytest.mark.parametrize("name", ["gpu", "cuda:x", "cuda:99", "cpu0"])
def test_a_device_that_is_not_there_is_a_message(name: str) -> None:
    with pytest.raises(UserError, match=name):
        device_of(name)


def test_a_lost_lease_commits_and_indexes_nothing(tmp_path: Path) -> None:
    lease = Lease(tmp_path / "lease.json")
    store = Store(tmp_path, keep=1, before_commit=lease.check)
    write = partial(write_files, files={"a.safetensors": memoryview(b"x")}, step=1)
    store.commit(1, write, {"step": 1}, best=None)
    holder = json.loads((tmp_path / "lease.json").read_text())
    (tmp_path / "lease.json").write_text(json.dumps(holder | {"token": "another"}))
    for step in (1, 2):  # one that is there already, and a new one
        with pytest.raises(LeaseLostError, match="another process took it over: process"):
            store.commit(step, write, {"step": step}, best=0.5)
    assert list(store.steps()) == [1]
    assert "best" not in store.index
    lease.release()
    assert (tmp_path / "lease.json").exists()


def test_a_failed_save_is_tried_again_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Not at every step while the other try is being written."""
    monkeypatch.setattr("trainer.checkpoint.saver.RETRY_AFTER", 0.0)
    go, full = threading.Event(), [False, True]

    def write() -> None:
        if full.pop():
            raise OSError(28, "No space left on device")
        assert go.wait(10)

    saver = Saver(Store(tmp_path, keep=1), before_write=write, on_commit=lambda step: None)
    files = {"model.safetensors": {"w": torch.ones(3)}}
    saver.save(1, files, {})
    saver.join()
    time.sleep(0.01)
    assert saver.retry
    saver.save(2, files, {})
    assert not saver.retry
    go.set()
    saver.join()
    assert not saver.retry
    assert list(Store(tmp_path, keep=1).steps()) == [2]
