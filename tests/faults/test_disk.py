"""D1 to D10: full and read-only disks, damaged checkpoints, left-overs, two writers, wrong clocks."""

from __future__ import annotations

import contextlib
import json
import os
import resource
import shutil
import subprocess
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from tests.trainers import Rank, Zygote, run_file, same, step_of, wait_for_step
from trainer.checkpoint.store import Store
from trainer.rundir import RunDir


@contextmanager
def mounted(folder: Path, *options: str) -> Iterator[bool]:
    """A small file system of its own on a folder; false where this container may not mount one."""
    folder.mkdir(parents=True, exist_ok=True)
    command = ["mount", "-t", "tmpfs", "-o", ",".join(options), "tmpfs", str(folder)]
    mine = subprocess.run(command, capture_output=True).returncode == 0
    try:
        yield mine
    finally:
        if mine:
            subprocess.run(["umount", "-l", str(folder)], check=True)


def fill(path: Path, rank: Rank, mine: bool) -> str:
    """Take the last free byte (where nothing can be mounted: forbid the rank larger files); the words of the system's error."""
    if not mine:
        resource.prlimit(rank.pid, resource.RLIMIT_FSIZE, (4096, resource.RLIM_INFINITY))  # the rank's own output still fits
        return "File too large"
    with path.open("wb") as file, contextlib.suppress(OSError):
        while os.write(file.fileno(), bytes(65536)):
            continue
    return "No space left"


def free(path: Path, rank: Rank, mine: bool) -> None:
    if mine:
        path.unlink()
    else:
        resource.prlimit(rank.pid, resource.RLIMIT_FSIZE, (resource.RLIM_INFINITY, resource.RLIM_INFINITY))


def test_a_full_disk_costs_a_checkpoint_and_not_the_training(
    trainers: Zygote, references: dict[int, Path], tmp_path: Path
) -> None:
    runs = tmp_path / "small"
    run = run_file(tmp_path, train={"steps": 3000}, checkpoint={"every": "100 steps"}, evaluate={"every": "5000 steps"})
    with mounted(runs, "size=6m") as mine:
        (rank,) = trainers.start(run, runs)
        wait_for_step(runs / "run", 250)
        good = step_of(runs / "run")
        assert good >= 100
        ballast = runs / "ballast"
        words = fill(ballast, rank, mine)
        at = wait_for_step(runs / "run", 0)["step"]
        _wait_for(rank, "was not written")
        assert words in rank.text()
        assert step_of(runs / "run") >= good  # the old ones stay
        assert Store(runs / "run" / "checkpoints", keep=1).last_good() is not None
        assert not list((runs / "run" / "checkpoints").glob(".tmp-*"))
        free(ballast, rank, mine)
        assert rank.wait() == 0
        assert step_of(runs / "run") == 3000 > at
        steps = [json.loads(line)["step"] for line in (runs / "run" / "metrics.jsonl").read_text().splitlines()]
        losses = [
            p["step"] for p in map(json.loads, (runs / "run" / "metrics.jsonl").read_text().splitlines()) if "train/loss" in p
        ]
        assert losses == list(range(1, 3001))
        assert steps == sorted(steps)


def _wait_for(rank: Rank, text: str, timeout: float = 40) -> None:
    deadline = time.monotonic() + timeout
    while text not in rank.text():
        assert time.monotonic() < deadline, rank.text()
        time.sleep(0.05)


def test_a_read_only_folder_is_refused(trainers: Zygote, tmp_path: Path) -> None:
    with mounted(tmp_path / "frozen", "ro") as mine:
        runs = tmp_path / "frozen" if mine else Path("/proc")  # where not even root makes a folder
        began = time.monotonic()
        (rank,) = trainers.start(run_file(tmp_path), tmp_path, args=("--runs", str(runs)))
        assert rank.wait() == 3
        assert time.monotonic() - began < 5
    assert f"{runs}/run cannot be written" in rank.text()


def _truncate(path: Path) -> None:
    with path.open("r+b") as file:
        file.truncate(path.stat().st_size // 2)


def _flip(path: Path) -> None:
    with path.open("r+b") as file:
        middle = path.stat().st_size // 2
        file.seek(middle)
        byte = file.read(1)[0]
        file.seek(middle)
        file.write(bytes([byte ^ 4]))


def _zero_tail(path: Path) -> None:
    size = path.stat().st_size
    with path.open("r+b") as file:
        file.seek(size - max(1, size // 3))
        file.write(bytes(max(1, size // 3)))


DAMAGE: list[Callable[[Path], None]] = [_truncate, _flip, _zero_tail, Path.unlink]
FILES = [
    "manifest.json", "state.json", "model.safetensors", "model-optimizer.safetensors", "model-average.safetensors",
]  # fmt: skip


@pytest.mark.parametrize("damage", DAMAGE, ids=["truncated", "flipped", "zeroed", "deleted"])
@pytest.mark.parametrize("name", FILES)
def test_a_damaged_file_is_found_named_and_passed_over(
    references: dict[int, Path], tmp_path: Path, caplog: pytest.LogCaptureFixture, damage: Callable[[Path], None], name: str
) -> None:
    folder = tmp_path / "checkpoints"
    shutil.copytree(references[1] / "checkpoints", folder)
    store = Store(folder, keep=2)
    steps = list(store.steps())
    damage(store.steps()[steps[-1]] / name)
    good = store.last_good()
    assert good is not None
    assert good.step == steps[-2]
    assert name in caplog.text
    assert f"step-{steps[-1]:08d}" in caplog.text


def test_every_flipped_bit_of_a_manifest_is_found(references: dict[int, Path], tmp_path: Path) -> None:
    folder = tmp_path / "checkpoints"
    shutil.copytree(references[1] / "checkpoints", folder)
    store = Store(folder, keep=2)
    newest = max(store.steps())
    path = store.steps()[newest] / "manifest.json"
    whole = path.read_bytes()
    for position in range(0, len(whole), 3):
        path.write_bytes(whole[:position] + bytes([whole[position] ^ 1 << position % 8]) + whole[position + 1 :])
        assert not store._intact(path.parent), position
        (bad,) = folder.glob(".bad-*")
        bad.rename(path.parent)
    path.write_bytes(whole)
    assert store._intact(path.parent)


def test_a_run_goes_on_from_the_checkpoint_before_a_damaged_one(
    trainers: Zygote, references: dict[int, Path], tmp_path: Path
) -> None:
    assert trainers.run(run_file(tmp_path), tmp_path, fault="step@24=kill") == [-9]
    checkpoints = tmp_path / "run" / "checkpoints"
    _flip(max(checkpoints.glob("step-*")) / "model.safetensors")
    assert trainers.run(run_file(tmp_path), tmp_path) == [0]
    assert "model.safetensors does not match its checksum" in trainers.started[-1].text()
    same(tmp_path / "run", references[1])


def test_without_any_good_checkpoint_the_run_is_refused(trainers: Zygote, tmp_path: Path) -> None:
    assert trainers.run(run_file(tmp_path), tmp_path, fault="step@24=kill") == [-9]
    for path in (tmp_path / "run" / "checkpoints").glob("step-*"):
        _truncate(path / "model.safetensors")
    assert trainers.run(run_file(tmp_path), tmp_path) == [3]
    assert "none of the" in trainers.started[-1].text()


def test_left_over_folders_are_ignored_and_removed(trainers: Zygote, references: dict[int, Path], tmp_path: Path) -> None:
    assert trainers.run(run_file(tmp_path), tmp_path, fault="step@24=kill") == [-9]
    checkpoints = tmp_path / "run" / "checkpoints"
    newest = max(checkpoints.glob("step-*"))
    shutil.copytree(newest, checkpoints / ".tmp-step-00000099-abcd")
    (checkpoints / "checkpoint_3").mkdir()
    (checkpoints / "step-last").mkdir()
    assert trainers.run(run_file(tmp_path), tmp_path) == [0]
    same_but = checkpoints / "step-last"
    same_but.rmdir()
    same(tmp_path / "run", references[1])
    assert not (checkpoints / ".tmp-step-00000099-abcd").exists()


def test_two_runs_in_one_folder(trainers: Zygote, tmp_path: Path) -> None:
    run = run_file(tmp_path, train={"steps": 4000})
    (first,) = trainers.start(run, tmp_path)
    wait_for_step(tmp_path / "run", 5)
    began = time.monotonic()
    (second,) = trainers.start(run, tmp_path)
    assert second.wait() == 3
    assert time.monotonic() - began < 5
    assert f"process {first.pid} on" in second.text()
    assert "is in use by" in second.text()
    wait_for_step(tmp_path / "run", wait_for_step(tmp_path / "run", 0)["step"] + 20)  # the first does not notice


def test_checkpoints_are_ordered_by_step_not_by_a_clock(trainers: Zygote, references: dict[int, Path], tmp_path: Path) -> None:
    assert trainers.run(run_file(tmp_path), tmp_path, fault="step@24=kill") == [-9]
    day = 86400
    for age, path in enumerate(sorted((tmp_path / "run" / "checkpoints").glob("step-*"))):
        for file in (path, *path.iterdir()):
            os.utime(file, (time.time() + day - age * 3600,) * 2)  # a day ahead, the oldest step looks newest
    lease = json.loads((tmp_path / "run" / "lease.json").read_text())  # left by the kill: stale, and reclaimed
    assert lease["pid"] == trainers.started[-1].pid
    assert trainers.run(run_file(tmp_path), tmp_path) == [0]
    same(tmp_path / "run", references[1])
    assert RunDir(tmp_path / "run").lease.exists() is False
