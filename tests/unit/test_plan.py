"""The arithmetic of a plan."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from launcher import machine
from launcher.machine import Machine
from launcher.plan import Counts, plan
from launcher.show import plan_rows
from trainer.config import Run, UserError
from trainer.config.amounts import Amount
from trainer.config.arithmetic import micro_batches, occasions, rank_shares, smaller, total_steps
from trainer.config.run import Train
from trainer.config.targets import Facts

CPU = Machine(gpus=0, cores=8)
COUNTS = Counts(100, 30, Facts.plain(("a", "b"), (60, 40)))


def run(**sections: Any) -> Run:
    return Run.model_validate(
        {
            "name": "x",
            "model": {"source": "torchvision:resnet18"},
            "strategy": {"kind": "head"},
            "data": {"train": "folder:t", "val": "folder:v"},
            "optimizer": {"kind": "sgd", "lr": 0.1},
            **sections,
        }
    )


@given(st.integers(1, 5000), st.integers(1, 64))
def test_shares_add_up_to_the_global_batch_and_are_even(batch: int, world: int) -> None:
    if batch < world:
        with pytest.raises(UserError, match=f"{batch} / {world}"):
            rank_shares(batch, world)
        return
    shares = rank_shares(batch, world)
    assert sum(shares) == batch
    assert len(shares) == world
    assert max(shares) - min(shares) <= 1


@given(st.integers(1, 500), st.one_of(st.just("auto"), st.integers(1, 600)))
def test_micro_batches_add_up_to_the_share(share: int, micro: Any) -> None:
    sizes = micro_batches(share, micro)
    assert sum(sizes) == share
    assert max(sizes) - min(sizes) <= 1
    assert sizes[-1] <= sizes[0]
    assert micro == "auto" or sizes[0] <= micro


@given(st.integers(1, 500), st.integers(1, 8))
def test_smaller_micro_batches_end_with_one_sample(batch: int, world: int) -> None:
    shares = rank_shares(max(batch, world), world)
    size: int | None = shares[0]
    found = []
    while size is not None:
        found.append(size)
        assert max(micro_batches(shares[0], size)) == size
        size = smaller(size, shares, alike=False)
    assert found[-1] == 1
    assert all(half <= -(-whole // 2) for whole, half in zip(found, found[2:], strict=False)), "two steps down are half at most"


def test_where_ranks_meet_in_every_pass_each_needs_a_sample_for_it() -> None:
    assert [smaller(2, shares, alike=alike) for shares in ((4, 4), (4, 3)) for alike in (False, True)] == [1, 1, 1, None]


@pytest.mark.parametrize(
    ("epochs", "samples", "batch", "steps"),
    [(10, 900, 64, 141), (1, 64, 64, 1), (1, 65, 64, 2), (0.1, 30, 1, 3), (0.001, 10, 64, 1), (2.5, 100, 50, 5), (3, 100, 7, 43)],
)
def test_steps_cover_the_epochs_with_full_batches(epochs: float, samples: int, batch: int, steps: int) -> None:
    assert total_steps(Train(epochs=epochs, global_batch=batch), samples) == steps


parts_of_epochs = st.builds(Amount, st.floats(0.01, 5), st.just("epoch"), st.just(""))
whole = st.builds(Amount, st.integers(1, 400), st.sampled_from(["step", "sample"]), st.just(""))


@given(parts_of_epochs | whole, st.integers(1, 60), st.integers(1, 40), st.integers(1, 300))
def test_occasions_are_those_of_a_loop_that_looks_after_every_step(every: Amount, steps: int, batch: int, epoch: int) -> None:
    apart = every.samples(epoch_samples=epoch, step_samples=batch)
    looked = sum(s == steps or s * batch // apart > (s - 1) * batch // apart for s in range(1, steps + 1))
    assert occasions(every, steps=steps, global_batch=batch, epoch_samples=epoch) == looked


def test_a_plan_on_a_cpu() -> None:
    made = plan(run(train={"epochs": 3, "global_batch": 32, "micro_batch": 6}, parallel={"processes": 3}), COUNTS, CPU)
    assert (made.device, made.world_size, made.threads) == ("cpu", 3, 2)
    assert made.shares == (11, 11, 10)
    assert (made.micro_batch, made.accumulation) == (6, 2)
    assert (made.steps, made.samples, made.tail) == (10, 320, 20)
    assert (made.evaluations, made.checkpoints) == (3, None), "after 128, 224 and 320 samples"


def test_evaluations_are_counted_with_the_one_at_the_start() -> None:
    made = plan(run(train={"epochs": 2, "global_batch": 50}, evaluate={"every": "1 epoch", "at_start": True}), COUNTS, CPU)
    assert made.evaluations == 3
    without = plan(run(data={"train": "folder:t"}), Counts(100, None, Facts.plain(("a", "b"), (60, 40))), CPU)
    assert (without.evaluations, without.evaluate_every, without.best) == (0, None, None)
    assert "no validation" in dict(plan_rows(without, "starts"))["data"]


def test_a_plan_on_gpus_takes_one_rank_each() -> None:
    made = plan(run(), COUNTS, Machine(gpus=4, cores=16))
    assert (made.device, made.world_size, made.shares, made.threads) == ("cuda", 4, (16,) * 4, 4)
    assert "if the GPU has no room for so many" in dict(plan_rows(made, "starts"))["batch"]
    written = plan(run(train={"micro_batch": 16}), COUNTS, Machine(gpus=4, cores=16))
    assert "no room" not in dict(plan_rows(written, "starts"))["batch"]
    assert plan(run(parallel={"device": "cpu"}), COUNTS, Machine(gpus=4, cores=16)).world_size == 1


def test_warm_up_in_samples() -> None:
    share = run(schedule={"kind": "cosine", "warmup": 0.1}, train={"steps": 100, "global_batch": 10})
    assert plan(share, COUNTS, CPU).warmup_samples == 100
    amount = run(schedule={"kind": "linear", "warmup": "2 epochs"})
    assert plan(amount, COUNTS, CPU).warmup_samples == 200


def test_several_nodes_are_planned_for_the_nodes_not_for_this_machine() -> None:
    made = plan(run(resources={"nodes": 2, "gpus_per_node": 4}, train={"precision": "fp16"}), COUNTS, CPU)
    assert (made.world_size, made.device, made.shares) == (8, "cuda", (8,) * 8)


@pytest.mark.parametrize(
    ("sections", "words"),
    [
        ({"train": {"precision": "fp16"}}, ["fp16", "train.precision=bf16"]),
        ({"train": {"global_batch": 2}, "parallel": {"processes": 4}}, ["2 / 4", "train.global_batch=4", "parallel.processes=2"]),
        ({"parallel": {"device": "cuda"}}, ["no GPU", "parallel.device=cpu"]),
    ],
)
def test_what_cannot_be_met_is_refused_with_what_to_write(sections: dict[str, Any], words: list[str]) -> None:
    with pytest.raises(UserError) as error:
        plan(run(**sections), COUNTS, CPU)
    assert all(word in str(error.value) for word in words)


def test_more_processes_than_gpus_are_refused() -> None:
    with pytest.raises(UserError, match=r"parallel\.processes is 3 and 2 GPUs are visible"):
        plan(run(parallel={"processes": 3}), COUNTS, Machine(gpus=2, cores=4))


@pytest.mark.parametrize(
    ("visible", "gpus"), [(None, 3), ("", 0), ("0", 1), ("0,2", 2), ("-1", 0), ("1,-1,0", 1), ("GPU-8f,GPU-9a", 2)]
)
def test_gpus_are_counted_as_cuda_counts_them(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, visible: str | None, gpus: int
) -> None:
    for name in ("nvidia0", "nvidia1", "nvidia2", "nvidiactl", "nvidia-uvm"):
        (tmp_path / name).touch()
    monkeypatch.setattr(machine, "DEVICES", tmp_path)
    if visible is None:
        monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    else:
        monkeypatch.setenv("CUDA_VISIBLE_DEVICES", visible)
    assert machine.here().gpus == gpus
