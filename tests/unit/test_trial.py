"""A trial of a micro-batch leaves a training as it was, whether memory did or ran out; where none can be made that is told."""

from __future__ import annotations

import json
import pickle
import random
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from tests.faults import test_diffusion, test_losses, test_optimizers
from tests.trainers import run_file
from trainer import keeping
from trainer import sizes as sizes_module
from trainer.build import build
from trainer.config.load import load
from trainer.config.run import Run
from trainer.loop import Step
from trainer.parts import Parts
from trainer.priors import open_prior
from trainer.probe import probe
from trainer.progress import Progress
from trainer.rundir import RunDir, Sizes
from trainer.runtime import Runtime
from trainer.runtime.engine import Whole
from trainer.session import assemble
from trainer.shortage import advice, short, told
from trainer.signals import StopFlag
from trainer.sizes import settle, shrunk
from trainer.trial import hindrance, lacks
from trainer.watch import Heartbeat

BATCHES = {"global_batch": 24, "micro_batch": 10}


def parts_of(run: Run) -> Parts:
    parts = build(run, Runtime(run.parallel, run.train, planned=None, uncompiled=None), None)
    assert parts.open_features(lambda stage: None, lambda: False)
    return parts


def after(parts: Parts, heart: Heartbeat) -> tuple[list[float], list[list[float]], dict[str, torch.Tensor], torch.Tensor]:
    """What three steps come to: losses, columns of the record, all that a checkpoint holds, and the state of random numbers."""
    job, progress = assemble(parts.run, parts, Progress(), None, None, StopFlag(), heart, None), Progress()
    parts.train_mode()
    taking = Step(job)
    for _ in range(3):
        taking.step(progress)
    taking.drain(progress)
    job.batches.close()
    held = {f"{file} {name}": value for file, tensors in keeping.tensors(parts).items() for name, value in tensors.items()}
    tensors = {name: value.clone() for name, value in held.items() if isinstance(value, torch.Tensor)}
    assert len(tensors) == len(held)
    return progress.losses, progress.parts, tensors, torch.get_rng_state()


def drawn_so_far() -> tuple[Any, ...]:
    """The states of all that draws."""
    return torch.get_rng_state().tolist(), random.getstate(), pickle.dumps(np.random.get_state())


SETTINGS: dict[str, dict[str, Any]] = {
    "plain": {},
    "scaled": {"train": {"precision": "fp16"}},
    "features": {"strategy": {"kind": "head"}, "data": {"augment": {}, "cache": {"kind": "features"}}},
    "gradual": {"strategy": {"kind": "gradual", "every": "1 steps"}},
}  # fmt: skip


def a_file(folder: Path, name: str) -> Path:
    if name in test_optimizers.SETTINGS:
        return test_optimizers.file(folder, name)
    if name in test_losses.LOSSES:
        return test_losses.file(folder, name)
    path = run_file(folder)
    run = json.loads(path.read_text())
    for section, more in SETTINGS[name].items():
        run[section] = {**more} if section == "strategy" else {**run[section], **more}
    path.write_text(json.dumps(run))
    return path


@pytest.mark.parametrize("name", [*SETTINGS, "schedule-free", "prodigy", "distilled", "uncertainty", "gradnorm", "dwa"])
def test_the_training_that_follows_is_the_same_to_the_bit(tmp_path: Path, name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """With every kind of optimizer and balance, and after a trial that ran out of memory in the midst of a backward pass."""
    path, heart = a_file(tmp_path, name), Heartbeat(tmp_path / "ranks", 0)
    run = load(path, [f"train.{key}={value}" for key, value in BATCHES.items()])
    try:
        torch.manual_seed(5)
        wanted = after(parts_of(run), heart)
        torch.manual_seed(5)
        parts = parts_of(run)
        assert hindrance(parts) is None
        assert isinstance(parts.engine, Whole)
        backward, calls = parts.engine.backward, list[int]()

        def failing(loss: torch.Tensor) -> None:
            backward(loss)
            calls.append(1)
            if len(calls) == 4:  # its second step, with the state of the optimizer there
                raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB.\nand more")

        monkeypatch.setattr(parts.engine, "backward", failing)
        drawn = drawn_so_far()
        assert lacks(parts, 10) == "OutOfMemoryError: CUDA out of memory. Tried to allocate 2.00 GiB."
        monkeypatch.setattr(parts.engine, "backward", backward)
        assert lacks(parts, 10) == ""
        assert drawn == drawn_so_far()
        found = after(parts, heart)
    finally:
        heart.close()
    assert found[:2] == wanted[:2]
    assert found[2].keys() == wanted[2].keys()
    for key, value in wanted[2].items():
        assert torch.equal(found[2][key], value), key
    assert torch.equal(found[3], wanted[3])


def test_what_is_tried_is_a_step_with_the_state_of_the_optimizer(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Two steps, of no more than two micro-batches each, of as many samples as asked."""
    parts = parts_of(load(run_file(tmp_path), ["train.global_batch=24"]))
    assert isinstance(parts.engine, Whole)
    seen: list[tuple[int, int]] = []
    spares: list[torch.optim.Optimizer] = []
    spare = parts.engine.spare

    def kept() -> torch.optim.Optimizer:
        spares.append(spare())
        return spares[-1]

    def look(module: Any, given: tuple[torch.Tensor, ...]) -> None:
        seen.append((len(given[0]), sum(len(one.state) for one in spares)))

    monkeypatch.setattr(parts.engine, "spare", kept)
    hook = parts.phase.network.register_forward_pre_hook(look)
    assert lacks(parts, 7) == ""
    hook.remove()
    learning = sum(p.requires_grad for p in parts.phase.network.parameters())
    assert seen == [(6, 0), (6, 0), (6, learning), (6, learning)]
    assert not parts.engine.optimizer.state


def test_a_prior_stands_beside_what_is_tried_and_measured(tmp_path: Path) -> None:
    """An odd number of samples, so that half of the pass would not do; and images that are made are a stage of their own."""
    task = {"condition": "class", "draws": 1, "prior": {"data": "digits:3/train", "classes": ["3"]}}
    data = {"train": "digits:5-9/train", "val": "digits:5-9/val"}
    train = {"global_batch": 5, "micro_batch": "auto"}
    run = load(test_diffusion.file(tmp_path, task=task, data=data, train=train, evaluate={"batch": None}))
    parts = build(run, Runtime(run.parallel, run.train, planned=None, uncompiled=None), None)
    assert open_prior(parts, tmp_path, lambda stage: None, lambda: False, resumed=False)
    sizes: list[int] = []
    hook = parts.phase.network.register_forward_pre_hook(lambda module, given: sizes.append(len(given[0])))
    assert lacks(parts, 5) == ""
    assert sizes == [10, 10]
    hook.remove()
    assert parts.splits.val is not None
    stages: list[str] = []
    parts.evaluation(parts.splits.val, stages.append)()
    assert list(dict.fromkeys(stages)) == ["evaluate", "make", "gather"]

    error = torch.OutOfMemoryError("CUDA out of memory")
    assert shrunk(parts, Sizes(5), error, stage="evaluate", step=3) is not None
    assert shrunk(parts, Sizes(5), error, stage="make", step=3) is None, "smaller evaluations would not help"
    assert "3 are made at a time; write task.samples.batch=1" in (advice(error, run, "make") or "")

    probed = probe(run, world=1, seconds=0.01)
    assert probed.batch == 5
    assert min(probed.step) > 0


def test_all_ranks_try_where_one_of_them_is_limited(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A limit may differ between nodes, and those who try tell each other how it went."""
    parts = parts_of(load(run_file(tmp_path)))
    tried: list[int] = []
    monkeypatch.setattr(sizes_module, "_try", lambda parts, sizes, step: tried.append(sizes.micro_batch))
    monkeypatch.setattr(sizes_module, "limited", lambda device: False)
    settle(RunDir(tmp_path / "run"), parts, 0)
    assert tried == []
    monkeypatch.setattr(parts.runtime, "everyone", lambda value: [value, True])
    settle(RunDir(tmp_path / "run"), parts, 0)
    assert tried == [24]


def test_where_nothing_can_be_tried_that_is_told(tmp_path: Path) -> None:
    parts = parts_of(load(test_losses.file(tmp_path, "adatask")))
    assert hindrance(parts) == "losses.balance: adatask steps by gradients that the ranks have summed"


@pytest.mark.parametrize(
    ("error", "known"),
    [
        (torch.OutOfMemoryError("CUDA out of memory"), True),
        (MemoryError(), True),
        (RuntimeError("CUDA error: CUBLAS_STATUS_ALLOC_FAILED when calling `cublasCreate(handle)`"), True),
        (RuntimeError("CUDA error: an illegal memory access was encountered"), False),
        (ValueError("can't allocate memory"), False),
    ],
)
def test_a_lack_of_memory_is_known_by_what_it_says(error: Exception, known: bool) -> None:
    assert short(error) is known
    assert (advice(error) is not None) is known


def test_the_advice_is_what_this_run_can_do(tmp_path: Path) -> None:
    error = torch.OutOfMemoryError("CUDA out of memory.\nTried")
    one = load(run_file(tmp_path), ["train.micro_batch=1", "train.checkpointing=true"])
    assert told(error) == "OutOfMemoryError: CUDA out of memory."
    said = advice(error, one, "forward") or ""
    assert "one sample at a time: write train.precision=bf16, or strategy.kind=lora, or parallel.kind=fsdp on more GPUs" in said
    evaluated = load(run_file(tmp_path), ["evaluate.batch=8"])
    assert "8 samples at a time in an evaluation: write evaluate.batch=4, or leave it out" in (
        advice(error, evaluated, "gather") or ""
    )
