"""The arithmetic of measurements in pairs."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from benchmarks import __main__ as runner
from benchmarks.__main__ import chosen_names
from benchmarks.paired import Measured, Spread, measure, table


def test_contestants_run_there_and_back_after_a_warm_up() -> None:
    calls: list[str] = []

    def run(name: str) -> float:
        calls.append(name)
        return float(len(calls))

    measured = measure({name: lambda name=name: run(name) for name in "ABC"}, 2)  # type: ignore[misc]
    assert "".join(calls) == "ABC" + "ABCCBA" * 2
    assert measured.times == {"A": [4, 9, 10, 15], "B": [5, 8, 11, 14], "C": [6, 7, 12, 13]}


def test_ratios_are_of_one_half_of_a_pass_and_the_control_of_one_pass() -> None:
    measured = Measured({"A": [1.0, 2.0, 4.0, 4.0], "B": [2.0, 2.0, 4.0, 8.0]})
    assert measured.ratio("B") == Spread(1.5, 1.0, 2.0, 4)
    assert measured.difference("B") == Spread(0.5, 0.0, 1.75, 4)
    assert measured.control() == Spread(1.5, 1.25, 1.75, 2)
    assert measured.control(difference=True).median == 0.5
    lines = table(measured, "ms", scale=1000)
    assert lines[2] == "| A | 3000 (1750 to 4000) | | 4 runs | |"
    assert lines[3].startswith("| B | 3000 (2000 to 5000) | 1.5 (1 to 2) | 4 |")
    assert "| -0" not in table(measured, "ms", scale=1000, difference=True)[3]
    assert table(measured, "ms", scale=1000, difference=True)[3].startswith("| B | 3000 (2000 to 5000) | 500 (0 to 1750) | 4 |")


def test_a_drift_within_a_pass_falls_on_all_alike() -> None:
    clock = 0.0

    def run(cost: float) -> float:
        nonlocal clock
        clock += 0.01
        return cost + clock

    measured = measure({"A": lambda: run(1.0), "B": lambda: run(1.0)}, 50)
    assert abs(measured.difference("B").median) < 1e-9


def test_nothing_under_three_percent_is_claimed_from_fewer_than_forty_pairs() -> None:
    def of(ratio: float, pairs: int) -> str:
        return Measured({"A": [1.0] * pairs, "B": [ratio] * pairs}).verdict("B")

    assert of(1.02, 38) == "no difference shown (under 3%, 38 pairs)"
    assert of(1.02, 40) == "slower"
    assert of(0.98, 40) == "faster"
    assert of(1.04, 4) == "slower"
    noisy = Measured({"A": [1.0, 1.3, 1.0, 1.3], "B": [1.1, 1.4, 1.1, 1.4]})
    assert noisy.verdict("B") == "no difference shown (within the noise)"  # the control is off by more


def test_nothing_measured_is_refused() -> None:
    with pytest.raises(ValueError, match="nothing was measured"):
        Spread.of([])
    assert Spread.of([2.0]) == Spread(2.0, 2.0, 2.0, 1)


def test_the_runner_takes_what_is_there_and_refuses_a_name_that_is_none() -> None:
    usual = chosen_names([], full=False, gpu=False)
    assert usual[0] == "loop"
    assert {"frozen", "checkpoint", "startup", "sweep", "kill", "memory"} <= set(usual)
    assert not {"gpu", "stop", "diffusion"} & set(usual)
    assert {"gpu", "stop", "diffusion"} <= set(chosen_names([], full=True, gpu=True))
    assert chosen_names(["kill", "loop"], full=False, gpu=False) == ["loop", "kill"]
    with pytest.raises(SystemExit, match="there is no measurement 'lop'; there are: loop, "):
        chosen_names(["lop"], full=False, gpu=False)


def test_a_failure_and_a_text_are_kept_as_sections(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(runner, "run", lambda command: (3, "half a table\n", ["why it failed"]))
    (failed,), good = runner.measure("kill", ["--quick"])
    assert not good
    assert (failed.number, failed.command) == ("8", "python -m benchmarks.kill --quick")
    assert {"half a table", "why it failed"} <= set(failed.lines)
    monkeypatch.setattr(runner, "run", lambda command: (0, "1.8e-7\n" if "--quick" not in command else "", []))
    (text,), good = runner.measure("split", ["--quick"])  # takes no options
    assert good
    assert "1.8e-7" in text.lines
    machine = {"processor": "one", "cores": 2, "memory_gib": 8, "load": [0.1], "gpus": [], "system": "Linux", "day": "today"}
    monkeypatch.setattr(runner, "everywhere", lambda: {"torch": "2"})
    runner.write([failed, text], machine, ["kill", "split"], ["--quick"], 120, tmp_path / "R.md")
    page = (tmp_path / "R.md").read_text()
    assert (
        "Written by `python -m benchmarks kill split --quick` with small settings (the figures mean little) on today in 2 min."
        in page
    )
    assert "## 8. kill" in page
    assert "Again: `python -m benchmarks.split`" in page
    assert json.loads((tmp_path / "R.json").read_text())["sections"][1]["number"] == "–"
