"""P1, P2, P5, P6, P7: a kill -9 at any instant, and the same end."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.trainers import Zygote, hashes, points, run_file, same, step_of
from trainer.checkpoint.store import Store, verify

KILLED = -9
SAVE = ["created", "model", "model-optimizer", "model-average", "state", "manifest", "synced", "renamed", "indexed"]


def intact(folder: Path) -> list[int]:
    """The checkpoints that verify; none of the others is a committed one."""
    found = Store(folder / "checkpoints", keep=1).steps()
    for path in found.values():
        verify(path)
    return list(found)


@pytest.mark.parametrize("step", [1, 17, 39])
def test_one_rank_killed_between_steps(trainers: Zygote, references: dict[int, Path], tmp_path: Path, step: int) -> None:
    assert trainers.run(run_file(tmp_path), tmp_path, fault=f"step@{step}=kill") == [KILLED]
    assert step_of(tmp_path / "run") <= max(step // 7 * 7, step // 15 * 15)
    assert trainers.run(run_file(tmp_path), tmp_path) == [0]
    same(tmp_path / "run", references[1])


@pytest.mark.parametrize(("victim", "step"), [(0, 23), (1, 18)])
def test_a_rank_of_two_killed(trainers: Zygote, references: dict[int, Path], tmp_path: Path, victim: int, step: int) -> None:
    ranks = trainers.start(run_file(tmp_path), tmp_path, world=2, fault=f"step@{step}:{victim}=kill")
    codes = [rank.wait() for rank in ranks]
    assert codes[victim] == KILLED
    assert codes[1 - victim] == 1
    said = ranks[1 - victim].text()
    assert f"rank {victim} (process {ranks[victim].pid} on" in said
    assert "Traceback" not in said
    assert trainers.run(run_file(tmp_path), tmp_path, world=2) == [0, 0]
    same(tmp_path / "run", references[2])


@pytest.mark.parametrize("phase", SAVE)
def test_killed_in_every_phase_of_a_save(trainers: Zygote, references: dict[int, Path], tmp_path: Path, phase: str) -> None:
    assert trainers.run(run_file(tmp_path), tmp_path, fault=f"save-{phase}@21=kill") == [KILLED]
    committed = intact(tmp_path / "run")
    assert 15 in committed or 14 in committed
    assert (21 in committed) == (phase in ("renamed", "indexed"))
    assert trainers.run(run_file(tmp_path), tmp_path) == [0]
    same(tmp_path / "run", references[1])
    assert not list((tmp_path / "run" / "checkpoints").glob(".tmp-*"))


def test_killed_in_a_save_of_two_ranks(trainers: Zygote, references: dict[int, Path], tmp_path: Path) -> None:
    codes = trainers.run(run_file(tmp_path), tmp_path, world=2, fault="save-manifest@21:0=kill")
    assert codes == [KILLED, 1]
    assert trainers.run(run_file(tmp_path), tmp_path, world=2) == [0, 0]
    same(tmp_path / "run", references[2])


@pytest.mark.parametrize("phase", ["rotate-renamed", "rotate-removed"])
def test_killed_in_a_rotation(trainers: Zygote, references: dict[int, Path], tmp_path: Path, phase: str) -> None:
    assert trainers.run(run_file(tmp_path), tmp_path, fault=f"{phase}=kill") == [KILLED]
    assert intact(tmp_path / "run")
    assert trainers.run(run_file(tmp_path), tmp_path) == [0]
    same(tmp_path / "run", references[1])
    assert not list((tmp_path / "run" / "checkpoints").glob(".old-*"))


@pytest.mark.parametrize("phase", ["resume-verified", "resume-loaded"])
def test_killed_in_a_resume(trainers: Zygote, references: dict[int, Path], tmp_path: Path, phase: str) -> None:
    assert trainers.run(run_file(tmp_path), tmp_path, fault="step@24=kill") == [KILLED]
    before = intact(tmp_path / "run")
    for _ in range(2):
        assert trainers.run(run_file(tmp_path), tmp_path, fault=f"{phase}=kill") == [KILLED]
        assert intact(tmp_path / "run") == before
    assert trainers.run(run_file(tmp_path), tmp_path) == [0]
    same(tmp_path / "run", references[1])


def test_the_reference_is_not_trivial(references: dict[int, Path]) -> None:
    """One rank and two differ in dropout only by design, and losses move: equal records mean something."""
    losses = [p["train/loss"] for p in points(references[1]) if "train/loss" in p]
    assert len(losses) == 40
    assert len(set(losses)) == 40
    assert hashes(references[1]) != hashes(references[2])
