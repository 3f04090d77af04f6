"""What failures cost on many GPUs, and how often to save."""

from __future__ import annotations

import json
import math
import random
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from launcher.foresee import Failures, foresee, script
from launcher.scale import RATES, daly, nodes_of, outlooks, ratio, young
from tests.trainers import ROOT
from tests.unit.test_imports import HEAVY, imported
from trainer.config import UserError

RUN = (
    "name: x\nmodel: {source: 'torchvision:resnet18'}\nstrategy: {kind: full}\ndata: {train: 'digits:0-4/train'}\n"
    "optimizer: {kind: sgd, lr: 0.1}\ntrain: {global_batch: 2048}\n"
)


def simulated(interval: float, save: float, restart: float, between: float, segments: int) -> float:
    """The share of the time that trains, where failures are drawn."""
    draw, time = random.Random(0), 0.0
    for _ in range(segments):
        while (lived := draw.expovariate(1 / between)) < interval + save:
            time += lived
            while (lived := draw.expovariate(1 / between)) < restart:
                time += lived
            time += restart
        time += interval + save
    return segments * interval / time


def test_the_ratio_is_that_of_drawn_failures() -> None:
    for interval, save, restart, between in ((600.0, 20.0, 120.0, 7200.0), (3000.0, 60.0, 300.0, 3600.0)):
        expected = ratio(interval, save, restart, between)
        assert simulated(interval, save, restart, between, 40_000) == pytest.approx(expected, rel=0.01)
    assert ratio(1e7, 10, 300, 100) == 0.0


def test_the_best_interval_is_the_best() -> None:
    for save, between in ((10.0, 3600.0), (60.0, 3600.0), (5.0, 1e6)):
        best = daly(save, between)
        at = ratio(best, save, 300, between)
        assert all(ratio(best * factor, save, 300, between) < at for factor in (0.7, 0.9, 1.1, 1.4))
        assert best == pytest.approx(young(save, between) - save, rel=0.05)
    assert daly(100.0, 40.0) == 40.0
    assert young(2.0, 100.0) == 20.0


def test_more_nodes_fail_more_often() -> None:
    few, many = (outlooks(nodes, 8, mtbf=5000, save=10, restart=300, every=600)[0] for nodes in (16, 128))
    assert few.job_hours == 8 * many.job_hours == 5000 / 16
    assert few.ratio > many.ratio
    assert few.own is not None
    assert few.own < few.ratio
    assert [one.rate for one in outlooks(1, 8, mtbf=None, save=10, restart=300, every=None)] == list(RATES)
    # published rates are of eight GPUs: 32 of them fail as often, however many stand in a node
    small, large = (outlooks(32 // each, each, mtbf=None, save=10, restart=300, every=None) for each in (4, 8))
    assert [one.job_hours for one in small] == pytest.approx([one.job_hours for one in large])
    assert nodes_of(1024, 8) == (128, 8)
    assert nodes_of(4, 8) == (1, 4)
    with pytest.raises(UserError, match="write --gpus 96"):
        nodes_of(100, 8)
    with pytest.raises(UserError, match="--mtbf is -1"):
        outlooks(1, 8, mtbf=-1, save=10, restart=300, every=None)
    with pytest.raises(UserError, match="--save is nan"):
        outlooks(1, 8, mtbf=None, save=math.nan, restart=300, every=None)


def test_plan_tells_it_without_torch(tmp_path: Path) -> None:
    (tmp_path / "run.yaml").write_text(RUN)
    asked = ["plan", "run.yaml", "--no-memory", "--gpus", "1024"]
    assert not imported(asked, tmp_path) & HEAVY

    def graft(*words: str) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            [sys.executable, "-m", "launcher", *words], cwd=tmp_path, capture_output=True, text=True, timeout=60, check=False,
            env={"PATH": "/usr/bin:/bin", "PYTHONPATH": str(ROOT), "HOME": str(tmp_path), "COLUMNS": "200"},
        )  # fmt: skip

    told = json.loads(graft(*asked, "--mtbf", "5000", "--json").stdout)
    assert (told["world_size"], told["nodes"], told["device"], told["accumulation"]) == (1024, 128, "cuda", 1)
    assert told["shares"] == [2] * 1024
    (one,) = told["failures"]
    assert one["job_hours"] == pytest.approx(5000 / 128)
    assert one["interval"] == pytest.approx(daly(10, 5000 * 3600 / 128))
    shown = graft(*asked).stdout
    assert "Young 1974" in shown
    assert "Daly 2006, eq. 37" in shown
    assert "Kokolis" in shown
    refused = graft("plan", "run.yaml", "--no-memory", "--gpus", "4096")
    assert refused.returncode == 2
    assert "train.global_batch is 2048 and there are 4096 ranks" in refused.stderr
    assert "write one of them" in graft("plan", "run.yaml", "--no-memory", "--card", "h100").stderr
    assert "leave one of them out" in graft("plan", "run.yaml", "--no-memory", "--gpus", "8", "parallel.device=cpu").stderr


def test_options_without_a_use_are_refused(tmp_path: Path) -> None:
    (tmp_path / "run.yaml").write_text(RUN)

    def plan(**options: Any) -> None:
        asked: dict[str, Any] = {"memory": False, "cards": [], "gpus": None, "failures": Failures(), **options}
        foresee(str(tmp_path / "run.yaml"), [], tmp_path, None, **asked)

    with pytest.raises(UserError, match="--mtbf is about many GPUs; add --gpus N"):
        plan(failures=Failures(mtbf=5000))
    with pytest.raises(UserError, match="--restart is about many GPUs"):
        plan(failures=Failures(restart=0.0))
    with pytest.raises(UserError, match="--mtbf is -1; write a number above 0"):
        plan(failures=Failures(mtbf=-1), gpus=8)
    with pytest.raises(UserError, match="--probe measures this machine, and --gpus is about another"):
        plan(gpus=8, probe=True)
    with pytest.raises(UserError, match="--script prints the job script alone; leave --card out"):
        script(str(tmp_path / "run.yaml"), [], tmp_path, None, None, Failures(), ["--card"])
    with pytest.raises(UserError, match="alone; leave --save out"):
        script(str(tmp_path / "run.yaml"), [], tmp_path, None, 8, Failures(save=3.0), [])
