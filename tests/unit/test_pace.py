"""How long a run will take, from runs like it and from a probe; whether the loader keeps up."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest

from launcher.machine import Machine
from launcher.pace import Probe, past
from launcher.plan import plan
from launcher.start import counts
from tests.trainers import ROOT, run_file
from trainer import build as building
from trainer.config import Run, UserError, load
from trainer.config.alike import alike, between, cpu
from trainer.data import Batch
from trainer.probe import _paced, probe
from trainer.rundir import RunDir


def went(runs: Path, name: str, run: Run, *, at: float = 0.0, **differs: Any) -> None:
    """A run that left its speed."""
    folder = runs / name
    folder.mkdir(parents=True)
    (folder / "run.yaml").write_text("name: x\n")
    speed = {
        "alike": alike(run), "between": between(run), "device": cpu(), "world": 1, "gpus": 0, "threads": 1, "points": 9,
        "samples_per_second": 100.0, "quartiles": [90.0, 110.0], "overall": 80.0, "data_wait": 0.1, "mfu": None, **differs,
    }  # fmt: skip
    (folder / "summary.json").write_text(json.dumps({"name": name, "speed": speed}))
    os.utime(folder / "summary.json", (at, at))


def test_the_latest_run_that_is_alike_says_how_long(tmp_path: Path) -> None:
    run = load(run_file(tmp_path, train={"steps": 4000}, resources={"time": "0:10:00"}), ["parallel.threads=1"])
    planned = plan(run, counts(run), Machine(0, 2))
    new, runs = RunDir(tmp_path / "new"), tmp_path / "runs"
    assert past(run, planned, new, runs) is None
    went(runs, "elsewhere", run, device="another processor")
    went(runs, "more-threads", run, threads=4)
    went(runs, "two-ranks", run, world=2)
    went(runs, "torn", run, quartiles=[1.0])
    went(runs, "other", run.model_copy(update={"strategy": load(run_file(tmp_path), ["strategy.kind=head"]).strategy}))
    assert past(run, planned, new, runs) is None
    went(runs, "older", run, at=time.time() - 99, samples_per_second=50.0)
    went(runs, "newest", run, at=time.time())
    found = past(run, planned, new, runs)
    assert found is not None
    assert (found.rate, found.overall, found.seconds, found.hours) == (100.0, 80.0, 4000 * 24 / 80, None)
    assert found.jobs == 2
    text = found.text(run.resources.time)
    assert "as the run newest went on 1 x" in text
    assert "the latest of 2 alike: 50 to 100/s" in text
    assert "does not finish in one job of 0:10:00: about 2 jobs" in text
    often = load(tmp_path / "run.yaml", ["parallel.threads=1", "evaluate.every=2 steps"])
    assert alike(often) == alike(run)
    without = past(often, planned, new, runs)
    assert without is not None
    assert (without.overall, without.seconds) == (None, 4000 * 24 / 100)
    assert "without evaluations and checkpoints" in without.text(None)
    (tmp_path / "new" / "checkpoints" / "step-00003990").mkdir(parents=True)
    rest = past(run, planned, new, runs)
    assert rest is not None
    assert (rest.seconds, rest.jobs) == (10 * 24 / 80, 1)


def test_a_loader_that_does_not_keep_up_is_told_with_the_workers_that_would() -> None:
    def of(loader: float, workers: int, *, cheap: bool = False, cores: int = 16) -> Probe:
        return Probe((loader,) * 3, (400.0,) * 3, (min(loader, 400.0),) * 3, workers, cores, cheap, 32)

    assert of(100.0, 2).needed == 8
    assert of(399.0, 4).needed == 5
    assert of(400.0, 2).needed is None
    assert of(1e6, 0, cheap=True).needed is None
    assert of(800.0, 0).needed == 1  # it would do, but not between the steps
    bound = dict(of(100.0, 2, cores=4).rows(1))["bound by"]
    assert "the loader: 0.25 of what the step takes; about 8 workers would keep up" in bound
    assert "4 cores for 1 rank" in bound
    assert dict(of(800.0, 2).rows(1))["bound by"].startswith("the step; the loader gives 2 times")


def test_what_workers_had_ready_is_not_their_pace() -> None:
    nothing: Any = [Batch.__new__(Batch)]

    def batches() -> Any:
        for index in range(1000):
            if index >= 5:
                time.sleep(0.01)
            yield nothing

    low, middle, high = _paced(8, batches(), 5, 0.3)
    assert 0 < low <= middle <= high <= 8 / 0.01


def test_a_probe_keeps_what_the_run_would(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """What is kept goes by how many samples the run sees, not by the time that there is for a probe."""
    asked = list[tuple[int, int]]()

    def frozen(run: Run, runtime: Any, built: Any, groups: Any, steps: int, samples: int) -> Any:
        asked.append((steps * run.train.global_batch, samples))
        raise UserError("enough")

    monkeypatch.setattr(building, "frozen", frozen)
    for change, seen in (("train.steps=10", 240), ("train={epochs: 2, global_batch: 24}", None)):
        with pytest.raises(UserError, match="enough"):
            probe(load(run_file(tmp_path), [change, "parallel.device=cpu"]), world=2, seconds=0.1)
        assert asked[-1][0] == (seen or pytest.approx(2 * asked[-1][1], abs=12))


def test_a_probe_measures_and_leaves_nothing(tmp_path: Path) -> None:
    path = run_file(tmp_path, train={"micro_batch": 8})
    before = sorted(p.name for p in tmp_path.rglob("*"))
    done = subprocess.run(
        [sys.executable, "-m", "trainer", "probe", str(path), "--world", "2", "--seconds", "0.1"], cwd=tmp_path,
        capture_output=True, text=True, timeout=120, check=False,
        env={"PATH": "/usr/bin:/bin", "PYTHONPATH": str(ROOT), "HOME": str(tmp_path)},
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout)
    assert (found["batch"], found["workers"], found["cheap"]) == (12, 0, False)
    for key in ("loader", "step", "together"):
        low, middle, high = found[key]
        assert 0 < low <= middle <= high
    assert sorted(p.name for p in tmp_path.rglob("*") if ".cache" not in p.parts and p.name != ".cache") == before
