"""The console on a terminal and without one; what W&B is told of secrets and of attempts."""

from __future__ import annotations

import io
import os
import pty
import sys
import time
from pathlib import Path

import pytest

from trainer.track import console as consoles
from trainer.track.console import Console, duration, short, terminal
from trainer.track.cursor import Cursor
from trainer.track.picture import draw_confusion
from trainer.track.redact import HIDDEN, redact


class Clock:
    def __init__(self) -> None:
        self.now = 1000.0

    def monotonic(self) -> float:
        return self.now


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    clock = Clock()
    monkeypatch.setattr(consoles, "time", clock)
    return clock


def test_plain_lines_about_every_ten_seconds(clock: Clock) -> None:
    out = io.StringIO()
    console = Console(name="tiny", total_samples=10_000, main=True, stream=out)
    for step in range(1, 101):
        clock.now += 0.5
        console.update(step * 100, step, step / 10, {"train/loss": 1 / step, "lr": 1e-3})
        if step == 50:
            console.evaluation({"val/loss": 0.25, "val/accuracy": 0.875, "step": 50})
    console.close()
    lines = out.getvalue().splitlines()
    assert len(lines) == 7  # at the start, every 10 s of 50, the last, and the evaluation
    assert lines[2] == " 41.0%  step 41  4,100 samples  epoch 4.10  200/s  loss 0.0244  lr 0.001  eta 30 s"
    assert lines[3] == "evaluated  step 50  loss 0.2500  accuracy 0.8750"
    assert lines[-1].startswith("100.0%")


def test_the_end_is_told_once_and_an_epoch_by_its_evaluation() -> None:
    out = io.StringIO()
    console = Console(name="tiny", total_samples=200, main=True, stream=out)
    console.update(100, 1, 1.0, {"train/epoch_loss": 2.0})
    console.evaluation({"val/loss": 1.5, "step": 1, "epoch": 1.0})
    console.update(200, 2, 2.0, {"train/epoch_loss": 1.0})
    console.update(200, 2, 2.0, {"train/loss": 1.25, "lr": 0.0})
    console.evaluation({"val/loss": 0.5})
    console.evaluation({"val/loss": 0.5})
    lines = out.getvalue().splitlines()
    assert [line.split()[0] for line in lines] == ["evaluated", "100.0%", "evaluated", "evaluated"]
    assert lines[0] == "evaluated  step 1  epoch 1.00  loss 1.5000  (training loss of the epoch 2.0000)"
    assert "loss 1.2500" in lines[1]
    assert "eta" not in lines[1]
    assert lines[2].endswith("epoch 1.0000)")
    assert lines[3] == "evaluated  loss 0.5000"


def test_only_the_main_rank_speaks(capfd: pytest.CaptureFixture[str]) -> None:
    console = Console(name="tiny", total_samples=10, main=False)
    console.update(5, 1, 0.5, {"train/loss": 1.0})
    console.message("hello")
    console.evaluation({"val/loss": 1.0})
    console.close()
    assert capfd.readouterr() == ("", "")


def test_a_bar_on_a_terminal() -> None:
    leader, follower = pty.openpty()
    os.environ["COLUMNS"] = "150"
    try:
        with os.fdopen(follower, "w") as terminal:
            console = Console(name="a[b]c", total_samples=1000, main=True, stream=terminal)
            for step in range(1, 4):
                time.sleep(0.26)
                console.update(step * 100, step, 0.1, {"train/loss": 0.5, "lr": 0.01})
            console.message("[not markup]")
            console.close()
            print("the end", file=terminal, flush=True)
            shown = ""
            while "the end" not in shown:  # a terminal hands out what it has in pieces
                shown += os.read(leader, 1 << 16).decode()
    finally:
        del os.environ["COLUMNS"]
        os.close(leader)
    for words in ("30%", "loss 0.5000", "lr 0.01", "eta", "/s", "[not markup]", "a[b]c"):
        assert words in shown


def test_the_terminal_of_the_launcher_is_found_by_its_name(monkeypatch: pytest.MonkeyPatch) -> None:
    leader, follower = pty.openpty()
    monkeypatch.setenv("GRAFT_TERMINAL", os.ttyname(follower))
    monkeypatch.setenv("TERM", "xterm")
    console = Console(name="tiny", total_samples=100, main=True)
    console.message("on the terminal")
    console.close()
    shown = ""
    while "on the terminal" not in shown:  # it comes in pieces; the test's time limit ends a wait in vain
        shown += os.read(leader, 1 << 16).decode()
    for handle in (leader, follower):
        os.close(handle)
    monkeypatch.setenv("GRAFT_TERMINAL", "/dev/no-such-terminal")
    assert terminal() is sys.stderr


def test_an_update_is_cheap() -> None:
    console = Console(name="tiny", total_samples=10**9, main=True, stream=io.StringIO())
    start = time.perf_counter()
    for step in range(20_000):
        console.update(step, step, 0.1, {"train/loss": 1.0})
    assert (time.perf_counter() - start) / 20_000 < 2e-5


def test_words_for_numbers() -> None:
    assert [duration(s) for s in (4.4, 65, 7384, 180_184)] == ["4 s", "1:05", "2:03:04", "2 d 02:03"]
    assert [short(v) for v in (0.5, 1e-5, 1234.5, float("nan"))] == ["0.5000", "1e-05", "1234", "not a number"]


def test_secrets_of_the_environment_are_hidden(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MY_API_KEY", "abcdefgh12345678")
    monkeypatch.setenv("SHORT_TOKEN", "run")
    value = {"a": ["x/abcdefgh12345678?y", 3], "hf_token": "plain", "name": "run", "tokens": 5}
    assert redact(value) == {"a": [f"x/{HIDDEN}?y", 3], "hf_token": HIDDEN, "name": "run", "tokens": 5}


def test_the_cursor_goes_on_where_the_last_attempt_ended(tmp_path: Path) -> None:
    first = Cursor(tmp_path)
    assert first.begin(tmp_path / "run-1", online=True, server=0) == 0
    first.end(57)
    assert Cursor(tmp_path).begin(tmp_path / "offline-run-2", online=False, server=0) == 57  # cut off without a row:
    (tmp_path / "offline-run-2").mkdir()
    assert Cursor(tmp_path).begin(tmp_path / "run-3", online=True, server=57) == 57
    assert not (tmp_path / "offline-run-2").exists()
    assert Cursor(tmp_path).begin(tmp_path / "run-4", online=True, server=80) == 80  # of run-3, 23 rows had arrived
    offline = Cursor(tmp_path)
    offline.begin(tmp_path / "offline-run-5", online=False, server=0)
    offline.end(120)
    assert Cursor(tmp_path).begin(tmp_path / "run-6", online=True, server=80) == 80  # run-5 was never sent


@pytest.mark.parametrize("count", [2, 30, 200])
def test_a_confusion_matrix_is_drawn(count: int) -> None:
    matrix = [[10 if i == j else (i + j) % 3 for j in range(count)] for i in range(count)]
    image = draw_confusion(matrix, [f"a class with a long name {i}" for i in range(count)])
    assert 70 <= image.height <= 1200
    assert image.width <= 1300
    assert len(image.getcolors(1 << 24) or []) > 3
