"""The learning-rate finder: what it suggests of known curves, and a real search that leaves the run untouched."""

from __future__ import annotations

import json
import math
import subprocess
import sys
from pathlib import Path
from xml.etree import ElementTree

import pytest

from tests.trainers import ROOT, run_file
from trainer.finder import suggest
from trainer.report.finder import finder_chart
from trainer.rundir import RunDir


def test_suggestions_of_a_known_curve() -> None:
    """The loss is flat, falls around 1e-3 along a logistic curve, and rises again after 1e-1."""
    rates = [10 ** (-6 + 6 * i / 199) for i in range(200)]
    losses = [2 - 1.5 / (1 + math.exp(-4 * (math.log10(r) + 3))) + max(0.0, math.log10(r) + 1) * 5 for r in rates]
    found = suggest(rates, losses)
    assert found["steepest"] == pytest.approx(1e-3, rel=0.2)
    assert found["minimum"] == pytest.approx(rates[losses.index(min(losses))] / 10)
    assert found["steepest"] * 0.1 < found["valley"] < 0.2
    assert suggest(rates, [1 + i for i in range(200)]) == {}
    assert suggest(rates[:4], losses[:4]) == {}


def test_the_chart_is_a_picture_with_every_suggestion() -> None:
    rates = [10 ** (-5 + 5 * i / 49) for i in range(50)]
    losses = [2 - math.log10(r) * 0.1 for r in rates]
    tree = ElementTree.fromstring(finder_chart(rates, losses, {"steepest": 1e-3, "valley": 1e-2}))
    texts = [element.text or "" for element in tree.iter() if element.tag.endswith("text")]
    assert any(text.startswith("steepest 1.00e-03") for text in texts)
    assert len([e for e in tree.iter() if e.tag.endswith("circle")]) == 2
    ElementTree.fromstring(finder_chart([0.1], [1.0], {}))


def test_it_searches_with_the_runs_own_parts_and_leaves_it_untouched(tmp_path: Path) -> None:
    run_file(tmp_path, strategy={"kind": "full"}, train={"steps": 4})

    def graft(*words: str) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            [sys.executable, "-m", "launcher", *words], cwd=tmp_path, capture_output=True, text=True, timeout=120, check=False,
            env={"PATH": "/usr/bin:/bin", "PYTHONPATH": str(ROOT), "HOME": str(tmp_path)},
        )  # fmt: skip

    done = graft("find-lr", "run.yaml", "--steps", "60", "--high", "100", "--json")
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout)
    assert found["rates"][0] == pytest.approx(1e-6)
    assert len(found["rates"]) == len(found["losses"]) <= 60
    assert all(1e-6 <= rate <= 100 for rate in found["suggestions"].values())
    assert found["suggestions"]["steepest"] > 1e-5, "the start is flat"
    folder = RunDir(tmp_path / "runs" / "run")
    assert json.loads((folder.path / "lr-finder.json").read_text()) == found
    assert not folder.exists()
    assert folder.untouched()
    assert graft("train", "run.yaml").returncode == 0
    refused = graft("find-lr", "run.yaml", "--low", "1", "--high", "0.1")
    assert refused.returncode == 2
    assert "must be more than 0 and less than --high" in refused.stderr
