"""W&B can fail, training cannot; and what it has, it has once (rows W1 to W3 of the fault matrix, and X3)."""

from __future__ import annotations

import json
import logging
import statistics
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import psutil
import pytest
from PIL import Image
from wandb.util import get_core_path

from tests.faults.mirrored import point
from tests.faults.stub import Behaviour, Stub, wait_for
from tests.unit.folders import RUN, bare
from trainer.rundir import Record, RunDir, read_points
from trainer.track import WandbSink

KEY = "5ec4e7a1" * 5
SECRET = "hunter2-hunter2"
TEXT = RUN + "track: {wandb: {project: p, timeout: MODE}}\n"


@pytest.fixture(autouse=True)
def _environment(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    for name in ("WANDB_API_KEY", "WANDB_BASE_URL", "WANDB_MODE"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setenv("NETRC", str(tmp_path / "none"))
    monkeypatch.setenv("MY_SERVICE_TOKEN", SECRET)


@pytest.fixture
def stub() -> Iterator[Stub]:
    server = Stub()
    yield server
    server.close()


def new_run(root: Path, timeout: float = 1.0) -> RunDir:
    text = TEXT.replace("timeout: MODE", f"timeout: {timeout}")
    return bare(root, text=text.replace("weights:", f"args: {{token: x, place: {SECRET}}}, weights:"))


def train(folder: RunDir, steps: range) -> tuple[WandbSink, list[float]]:
    """Record and log the steps, and commit the last; the sink and how long each log took in seconds."""
    record = Record(folder.metrics, points=steps[0] - 1)
    sink = WandbSink(folder, folder.load())
    took = []
    for step in steps:
        record.append(point(step))
        start = time.perf_counter()
        sink.log(point(step))
        took.append(time.perf_counter() - start)
        time.sleep(0.002)
    record.close()
    sink.commit(steps[-1])
    return sink, took


def rows(folder: RunDir) -> list[dict[str, Any]]:
    """All history rows in the local files of all attempts, as wandb's own reader (`wandb leet inspect`) sees them."""
    found = []
    for file in sorted((folder.path / "wandb").glob("*run-*-*/*.wandb")):
        command = [
            get_core_path(),
            "leet",
            "inspect",
            "--json",
            "--no-observability",
            "--run-file",
            str(file),
            str(file.parents[1]),
        ]
        said = subprocess.run(command, capture_output=True, text=True, check=True, timeout=60)
        records = [json.loads(line) for line in said.stdout.splitlines()]
        found += [record["history"]["item"] for record in records if record.get("type") == "history"]
    return found


def ids(folder: RunDir) -> set[str]:
    return {file.stem.removeprefix("run-") for file in (folder.path / "wandb").glob("*run-*-*/*.wandb")}


def assert_mirror(folder: RunDir, found: list[dict[str, Any]]) -> None:
    """Each metric of each point of the record is there once, with its value."""
    counted = Counter((key, row["samples"]) for row in found for key in row if not key.startswith("_"))
    assert set(counted.values()) == {1}
    recorded = {(key, p["samples"]): value for p in read_points(folder.metrics) for key, value in p.items()}
    assert {(key, row["samples"]): row[key] for row in found for key in row if not key.startswith("_")} == recorded


def assert_no_secret(folder: RunDir) -> None:
    files = [p for room in ("wandb", "log") for p in (folder.path / room).rglob("*") if p.is_file()]
    assert any(p.suffix == ".wandb" for p in files)
    for path in files:
        content = path.read_bytes()
        assert SECRET.encode() not in content, path
        assert KEY.encode() not in content, path


@pytest.mark.parametrize("behaviour", ["refused", "error", "slow", "unauthorised"])
def test_a_server_that_fails(
    behaviour: Behaviour | str, tmp_path: Path, stub: Stub, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """Training goes on at its pace, one warning is logged, and everything is recorded offline."""
    stub.behaviour = "ok" if behaviour == "refused" else behaviour  # type: ignore[assignment]
    monkeypatch.setenv("WANDB_BASE_URL", "http://127.0.0.1:9" if behaviour == "refused" else stub.url)
    monkeypatch.setenv("WANDB_API_KEY", KEY)
    caplog.set_level(logging.INFO, "graft.track")
    folder = new_run(tmp_path)
    sink, took = train(folder, range(1, 51))
    assert statistics.median(took) < 1e-3
    start = time.monotonic()
    sink.finish(15)
    assert time.monotonic() - start < 10
    assert_mirror(folder, rows(folder))
    assert len([r for r in caplog.records if r.levelno >= logging.WARNING]) == 1
    assert "recorded offline" in caplog.text
    assert_no_secret(folder)


def test_a_finish_that_is_cut_short(tmp_path: Path, stub: Stub, monkeypatch: pytest.MonkeyPatch) -> None:
    """Less time than the start needs: it ends in that time, with every process that it began."""
    stub.behaviour = "slow"
    monkeypatch.setenv("WANDB_BASE_URL", stub.url)
    monkeypatch.setenv("WANDB_API_KEY", KEY)
    before = set(psutil.Process().children(recursive=True))
    sink, _ = train(new_run(tmp_path, timeout=30), range(1, 6))
    start = time.monotonic()
    sink.finish(1.5)
    assert time.monotonic() - start < 2.5
    assert wait_for(lambda: set(psutil.Process().children(recursive=True)) <= before, 2)


def test_online_and_resumed(tmp_path: Path, stub: Stub, monkeypatch: pytest.MonkeyPatch) -> None:
    """The server gets each point once, under one id, with pictures; also when it is not known how the last attempt ended."""
    monkeypatch.setenv("WANDB_BASE_URL", stub.url)
    monkeypatch.setenv("WANDB_API_KEY", KEY)
    folder = new_run(tmp_path, timeout=10)
    picture = folder.samples / "right.png"
    Image.new("L", (8, 8)).save(picture)
    sink, _ = train(folder, range(1, 21))
    for step in (21, 22):
        with folder.metrics.open("a") as file:
            file.write(json.dumps(point(step)) + "\n")
        sink.log(point(step))
    sink.images("val/predictions", [(picture, "1 of 1 right")], point(21))
    sink.confusion([[3, 1], [0, 4]], ["a", "b"], point(21))
    sink.commit(21)  # 22 is not final
    sink.summary({"best": 0.5})
    sink.finish(15)
    assert [row["step"] for row in (stub.history[k] for k in sorted(stub.history))] == list(range(1, 22))
    assert stub.history[20]["val/predictions"]["_type"] == "images/separated"
    assert stub.history[20]["val/confusion"]["_type"] == "image-file"
    assert stub.summary["best"] == 0.5
    assert json.loads(stub.config)["optimizer"]["value"]["lr"] == 1e-3
    cursor = folder.path / "wandb" / "cursor.json"
    cursor.write_text(json.dumps(json.loads(cursor.read_text()) | {"end": None}))  # killed before this was noted
    sink, _ = train(folder, range(22, 31))
    sink.finish(15)
    assert [stub.history[k]["step"] for k in sorted(stub.history)] == list(range(1, 31))
    assert len(stub.ids) == 1
    assert SECRET not in stub.config
    assert_no_secret(folder)


def test_a_server_that_dies_in_mid_run(
    tmp_path: Path, stub: Stub, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setenv("WANDB_BASE_URL", stub.url)
    monkeypatch.setenv("WANDB_API_KEY", KEY)
    folder = new_run(tmp_path, timeout=1.5)
    sink, _ = train(folder, range(1, 11))
    cursor = folder.path / "wandb" / "cursor.json"
    assert wait_for(cursor.exists, 10)
    stub.behaviour = "slow"
    start = time.monotonic()
    sink.finish(10)
    assert time.monotonic() - start < 6
    assert_mirror(folder, rows(folder))
    assert "did not take everything" in caplog.text
    assert json.loads(cursor.read_text())["end"] is None


def test_killed_again_and_again(tmp_path: Path) -> None:
    """kill -9, resume at the last checkpoint, and so on: over all fragments each point once, one id, nobody left."""
    folder = new_run(tmp_path)

    def attempt(first: int, last: int, *, kill: bool) -> None:
        command = [sys.executable, "-m", "tests.faults.mirrored", str(folder.path), str(first), str(last), "10"]
        cursor = folder.path / "wandb" / "cursor.json"
        if kill:
            before = cursor.read_text() if cursor.exists() else ""
            process = subprocess.Popen([*command, "hang"], stdout=subprocess.PIPE, text=True, cwd=Path(__file__).parents[2])
            assert process.stdout is not None
            assert process.stdout.readline() == "ready\n"
            assert wait_for(lambda: cursor.read_text() != before, 10)
            family = psutil.Process(process.pid).children(recursive=True)
            assert family
            process.kill()
            process.wait()
            process.stdout.close()
            assert wait_for(lambda: not any(p.is_running() and p.status() != psutil.STATUS_ZOMBIE for p in family), 2)
        else:
            subprocess.run(command, check=True, cwd=Path(__file__).parents[2], timeout=60)

    attempt(1, 34, kill=True)
    attempt(31, 44, kill=False)
    cursor = folder.path / "wandb" / "cursor.json"
    noted = json.loads(cursor.read_text())
    assert noted["end"] == 40  # 41 to 44 have no checkpoint
    cursor.write_text(json.dumps(noted | {"end": None}))  # killed between the end and the note: the file is counted
    attempt(41, 55, kill=True)
    attempt(51, 60, kill=False)
    assert len(read_points(folder.metrics)) == 60
    assert_mirror(folder, rows(folder))
    assert ids(folder) == {(folder.path / "wandb" / "id").read_text().strip()}
    assert_no_secret(folder)


def test_without_wandb_nothing_starts(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    before = set(psutil.Process().children(recursive=True))
    monkeypatch.setenv("WANDB_MODE", "disabled")
    for folder in (bare(tmp_path, "none"), new_run(tmp_path)):
        sink, _ = train(folder, range(1, 3))
        sink.finish(1)
        assert not (folder.path / "wandb").exists()
    assert set(psutil.Process().children(recursive=True)) <= before
