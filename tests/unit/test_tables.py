"""Runs as tables: chosen and sorted, a thousand in a second, live with their curves."""

from __future__ import annotations

import fcntl
import json
import os
import pty
import socket
import struct
import subprocess
import sys
import termios
import time
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import pytest

from launcher.runs import Status, choose, duration
from launcher.watch import Curve, Watch, spark
from tests.unit.folders import bare, crowd
from trainer.config import UserError
from trainer.rundir.lease import Holder

ROOT = Path(__file__).resolve().parents[2]


def test_runs_are_chosen_and_sorted() -> None:
    plain = Status("x", "/x", "done", 1, 1, 1, "val/accuracy", 0.5, 0.0, "")
    found = [
        replace(plain, name="b10", best=0.7, at=1), replace(plain, name="b9", best=0.9, at=2, state="failed"),
        replace(plain, name="a", best=None, best_metric=None, at=3, state="running"),
        replace(plain, name="c", best=0.1, best_metric="val/loss", at=4),
        replace(plain, name="d", best=0.2, best_metric="val/loss", at=5),
    ]  # fmt: skip

    def names(**how: Any) -> list[str]:
        return [run.name for run in choose(found[::-1], **how)]

    assert names() == ["b10", "b9", "a", "c", "d"]
    assert names(sort="best") == ["b9", "b10", "c", "d", "a"]
    assert names(sort="name") == ["a", "b9", "b10", "c", "d"]
    assert names(sort="state") == ["a", "b9", "d", "c", "b10"]
    assert names(states="running, failed") == ["b9", "a"]
    assert names(last=2, sort="best") == ["c", "d"]
    with pytest.raises(UserError, match="did you mean 'running'"):
        choose(found, states="runing")
    with pytest.raises(UserError, match="did you mean 'best'"):
        choose(found, sort="bst")
    assert [duration(s) for s in (5, 99.4, 100, 5900, 7500, 200_000)] == ["5 s", "99 s", "2 min", "98 min", "2 h 05", "2 d 7 h"]


def test_a_thousand_runs_are_listed_in_a_second(tmp_path: Path) -> None:
    runs = crowd(tmp_path, 1000)
    command = [sys.executable, "-m", "launcher", "runs", "--runs", str(runs)]
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    taken, pace, text = [], [], ""
    for _ in range(3):
        began = time.monotonic()
        subprocess.run([sys.executable, "-c", "pass"], check=True)
        pace.append(time.monotonic() - began)
        began = time.monotonic()
        text = subprocess.run(command, env=environment, capture_output=True, text=True, check=True).stdout
        taken.append(time.monotonic() - began)
    assert len(text.splitlines()) == 1001
    assert "100 failed" not in text
    assert sum(" failed " in line for line in text.splitlines()) == 100
    # a bare interpreter takes 0.03 s on a quiet machine; on a busy one everything takes longer
    assert min(taken) < 1.0 * max(1.0, min(pace) / 0.03), f"{taken} s, a bare python {pace} s"


def test_a_curve_is_read_as_it_grows_and_anew_after_a_resume(tmp_path: Path) -> None:
    path = tmp_path / "metrics.jsonl"
    curve = Curve(path)
    curve.read()
    assert curve.losses == []
    path.write_text('{"train/loss": 4}\n{"val/loss": 9}\n{"train/loss": 3')
    curve.read()
    assert curve.losses == [4]
    with path.open("a") as file:
        file.write('}\n{"train/loss": null}\n{"train/loss": 1}\n')
    curve.read()
    assert curve.losses == [4, 3, 1]
    new = tmp_path / "new"
    new.write_text('{"train/loss": 8}\n' * 3)
    new.replace(path)
    curve.read()
    assert curve.losses == [8, 8, 8]
    path.write_text("".join(json.dumps({"train/loss": float(n), "padding": "x" * 100}) + "\n" for n in range(5000)))
    curve.read()
    assert len(curve.losses) < 1100
    assert 4900 < curve.losses[-1] < 5000
    assert spark([1.0, 1.0]) == "▁▁"
    assert spark([float(n) for n in range(80)]) == "▁▁▂▂▂▃▃▄▄▄▅▅▅▆▆▇▇▇██"
    assert spark([]) == ""


@pytest.mark.parametrize("width", [40, 60, 100, 200])
def test_the_live_table_fits_its_terminal_with_what_runs_first(tmp_path: Path, width: int) -> None:
    from rich.console import Console

    for number in range(30):
        rundir = bare(tmp_path, f"{'long-name-' * (number % 5)}{number:03d}")
        rundir.metrics.write_text('{"step": 3, "samples": 99, "train/loss": 0.5}\n')
        rundir.mark("DONE", "3 steps", 0, 3)
    holder = Holder(socket.gethostname() + "x", "boot", 1, 1.0, "t", 0, "now", "trainer")
    last = bare(tmp_path, "zz-runs")
    last.lease.write_text(json.dumps(asdict(holder)))
    console = Console(width=width, height=12, record=True, force_terminal=False)
    with console.capture() as captured:
        console.print(Watch(tmp_path / "runs").draw(width, 12))
    lines = captured.get().splitlines()
    assert len(lines) <= 12
    assert max(len(line) for line in lines) <= width
    assert lines[0].startswith("1 running, 30 done; 24 not shown"[: width - 1])
    assert "zz-runs" in lines[4]
    assert "running" in lines[4]


def test_a_narrow_terminal_shows_why_before_when(tmp_path: Path) -> None:
    rundir = bare(tmp_path, "a-run-with-a-name-of-some-length")
    rundir.metrics.write_text('{"step": 3000, "samples": 99, "train/loss": 0.5, "val/accuracy": 0.5}\n')
    rundir.mark("FAILED", "rank 3 on node2 died of \x1b[2Ja very long reason that goes on and on without an end in sight", 1, 3)
    reader, writer = pty.openpty()
    fcntl.ioctl(writer, termios.TIOCSWINSZ, struct.pack("HHHH", 24, 80, 0, 0))
    environment = {k: v for k, v in os.environ.items() if k not in ("COLUMNS", "NO_COLOR")} | {
        "PYTHONPATH": str(ROOT),
        "TERM": "xterm",
    }
    command = [sys.executable, "-m", "launcher", "runs", "--runs", str(tmp_path / "runs")]
    subprocess.run(command, env=environment, stdout=writer, check=True, timeout=60)
    said = os.read(reader, 65536).decode()
    os.close(writer)
    os.close(reader)
    head, row = said.replace("\x1b[31m", "").replace("\x1b[0m", "").splitlines()
    assert "when" not in head
    assert "\x1b" not in row
    assert "rank 3 on node2 died of [2J" in row
    assert max(len(head), len(row)) <= 80
    assert row.endswith("…")
