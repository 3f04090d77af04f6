"""`graft sync`, and attempts that find the server again: what W&B has in the end is the record, each row once and in order."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import psutil
import pytest

from tests.faults.stub import Stub, wait_for
from tests.trainers import ROOT, Rank, Zygote, run_file, same
from tests.unit.folders import trained
from trainer.rundir import RunDir, read_points, write_atomically

KEY = "5ec4e7a1" * 5
TRACK = {"every": 1, "wandb": {"project": "p", "timeout": 4}}
KILLED = -9


@pytest.fixture
def stub() -> Iterator[Stub]:
    server = Stub()
    yield server
    server.close()


@pytest.fixture
def offline(tmp_path: Path) -> dict[str, str]:
    """The environment of a compute node: no key."""
    return {"HOME": str(tmp_path), "NETRC": str(tmp_path / "none"), "WANDB_API_KEY": "", "WANDB_MODE": "offline"}


@pytest.fixture
def online(offline: dict[str, str], stub: Stub) -> dict[str, str]:
    return {**offline, "WANDB_BASE_URL": stub.url, "WANDB_API_KEY": KEY, "WANDB_MODE": "online"}


def begin(env: dict[str, str], runs: Path, *words: str) -> subprocess.Popen[str]:
    command = [sys.executable, "-m", "launcher", "sync", "--runs", str(runs), *words]
    out = subprocess.PIPE
    return subprocess.Popen(command, env={**os.environ, **env}, cwd=ROOT, stdout=out, stderr=out, text=True)


def sync(env: dict[str, str], runs: Path, *words: str) -> tuple[int, str, str]:
    """The exit code, stdout and stderr of a `graft sync` that ends by itself."""
    with begin(env, runs, *words) as process:
        out, err = process.communicate(timeout=60)
    return process.returncode, out, err


def mirrored(folder: Path) -> list[dict[str, Any]]:
    """The record as rows: without what is null."""
    return [{k: v for k, v in point.items() if v is not None} for point in read_points(folder / "metrics.jsonl")]


def kill(process: subprocess.Popen[str]) -> None:
    """kill -9; whatever it started ends by itself."""
    family = psutil.Process(process.pid).children(recursive=True)
    assert family
    process.kill()
    process.communicate()
    assert wait_for(lambda: not any(p.is_running() and p.status() != psutil.STATUS_ZOMBIE for p in family), 5)


def finished(root: Path, steps: int) -> RunDir:
    """A run that was tracked and is done, made up."""
    folder = trained(root, classes=["a", "b", "c"], steps=steps)
    run = json.loads(json.dumps(folder.load().model_dump(mode="json")))
    write_atomically(folder.config, json.dumps(run | {"track": TRACK}))
    (folder.path / "wandb").mkdir()
    (folder.path / "wandb" / "id").write_text("abcdef0123456789\n")
    return folder


def stopped(rank: Rank) -> bool:
    return psutil.Process(rank.pid).status() == psutil.STATUS_STOPPED


def went_online(folder: Path) -> bool:
    """Whether the newest attempt has opened the W&B run on the server, and not ended."""
    cursor = RunDir(folder).read_json(folder / "wandb" / "cursor.json")
    return bool(cursor.get("online")) and cursor["end"] is None


def test_offline_attempts_are_sent_while_the_run_goes_on_and_afterwards(
    trainers: Zygote, references: dict[int, Path], tmp_path: Path, stub: Stub, offline: dict[str, str], online: dict[str, str]
) -> None:
    """Two attempts, the first killed; `sync -f` begins with the first and ends with the run."""
    file, folder = run_file(tmp_path, track=TRACK), tmp_path / "run"
    assert trainers.run(file, tmp_path, fault="step@25=kill", env=offline) == [KILLED]
    covered = RunDir(folder).covered()
    assert 15 < covered < len(read_points(folder / "metrics.jsonl"))
    with begin(online, tmp_path, "-f", "run", "--json") as following:
        try:
            assert wait_for(lambda: len(stub.history) == covered, 30)
            code, _, err = sync(online, tmp_path, "run")
            assert code == 3
            assert "another `graft sync` is sending it" in err
            assert following.poll() is None
            assert trainers.run(file, tmp_path, env=offline) == [0]
            out, _ = following.communicate(timeout=30)
        finally:
            following.kill()
    same(folder, references[1])
    assert json.loads(out)["runs"][0]["state"] == "complete"
    assert stub.rows == mirrored(folder)
    assert stub.ids == {(folder / "wandb" / "id").read_text().strip()}
    summary = json.loads((folder / "summary.json").read_text())
    assert stub.summary["best"] == summary["best"]["value"]
    assert {key: stub.summary[key] for key in summary["final"]} == summary["final"]
    pictured = [row["step"] for row in stub.history.values() if "val/predictions" in row]
    assert sorted(pictured) == [15, 30, 40]
    assert [row["step"] for row in stub.history.values() if "val/confusion" in row] == [15, 40]

    fragments = list((folder / "wandb").glob("offline-run-*/*.wandb"))
    assert fragments
    assert all(file.with_suffix(".wandb.synced").exists() for file in fragments)
    stub.requests.clear()
    code, out, _ = sync({**online, "WANDB_MODE": "offline"}, tmp_path)
    assert (code, out) == (0, f"run: nothing new; the server has all {len(stub.history)}\n")
    assert set(stub.requests) == {"RunResumeStatus"}


def test_killed_while_it_sends(tmp_path: Path, stub: Stub, online: dict[str, str]) -> None:
    """Before the server took the rows, and after it took them without having said so."""
    folder = finished(tmp_path, steps=200)
    for behaviour in ("deaf", "swallow"):
        stub.behaviour = behaviour
        stub.heard.clear()
        process = begin(online, folder.path.parent)
        assert stub.heard.wait(30)
        time.sleep(0.3)
        kill(process)
    assert 0 < len(stub.history) < 210
    rest = 210 - len(stub.history)
    stub.behaviour = "ok"
    code, out, _ = sync(online, folder.path.parent)
    assert (code, out[: out.find("  ")]) == (0, f"tiny: {rest} rows sent; the server has all 210")
    assert stub.rows == mirrored(folder.path)
    assert not (folder.path / "wandb" / "sync").exists()


def test_what_cannot_be_sent_is_said(tmp_path: Path, stub: Stub, online: dict[str, str]) -> None:
    folder = finished(tmp_path, steps=10)
    code, _, err = sync({**online, "WANDB_API_KEY": ""}, folder.path.parent)
    assert code == 2
    assert "`wandb login`" in err
    stub.behaviour = "error"
    code, out, _ = sync(online, folder.path.parent, "--json")
    assert code == 1
    assert json.loads(out)["runs"][0]["reason"].endswith("answered 500 Internal Server Error")
    assert stub.history == {}

    stub.behaviour = "ok"
    broken = folder.path.with_name("broken")
    (broken / "wandb").mkdir(parents=True)
    (broken / "wandb" / "id").write_text("x\n")
    (broken / "run.yaml").write_text("name: [")
    code, out, err = sync(online, folder.path.parent)
    assert code == 2
    assert "tiny: 20 rows sent; the server has all 20" in out
    assert "broken" in err


def test_the_network_comes_back_between_two_attempts(
    trainers: Zygote, tmp_path: Path, stub: Stub, offline: dict[str, str], online: dict[str, str]
) -> None:
    """Rows that only files of an offline attempt had are sent by the online one; a sync meanwhile leaves it alone."""
    file, folder = run_file(tmp_path, track=TRACK), tmp_path / "run"
    [first] = trainers.start(file, tmp_path, fault="step@25=kill", env=offline)
    assert first.wait() == KILLED
    [rank] = trainers.start(file, tmp_path, fault="step@38=stop", env=online)
    assert wait_for(lambda: stopped(rank) and went_online(folder), 30)
    code, out, _ = sync(online, tmp_path, "run")
    assert (code, out) == (0, "run: its running attempt reports online itself; left alone\n")
    rank.send(signal.SIGCONT)
    assert rank.wait() == 0
    assert stub.rows == mirrored(folder)
    assert "val/predictions" in next(row for row in stub.history.values() if row["step"] == 15 and "val/loss" in row)
    code, out, _ = sync(online, tmp_path, "run")
    assert (code, out) == (0, f"run: nothing new; the server has all {len(stub.history)}\n")


def test_a_server_that_answers_then_fails_then_hangs_then_dies(
    trainers: Zygote, references: dict[int, Path], tmp_path: Path, stub: Stub, online: dict[str, str]
) -> None:
    """A run that was queued again in between is what it is without W&B, its end is bounded, and a sync completes the rows."""
    file, folder = run_file(tmp_path, track=TRACK), tmp_path / "run"
    assert trainers.run(file, tmp_path, fault="step@16=usr", env=online) == [75]
    before = RunDir(folder).covered()
    assert len(stub.history) == before > 0
    [rank] = trainers.start(file, tmp_path, fault="step@22=stop", env=online)
    assert wait_for(lambda: stopped(rank) and went_online(folder), 30)
    for behaviour in ("error", "slow"):
        stub.heard.clear()
        stub.behaviour = behaviour
        rank.send(signal.SIGCONT)
        assert stub.heard.wait(20)  # wandb talks when the run ends, and every 15 s
    start = time.monotonic()
    stub.close()
    assert rank.wait() == 0
    assert time.monotonic() - start < 10
    same(folder, references[1])
    assert len(stub.history) == before
    with contextlib.closing(Stub(port=stub.server_address[1])) as again:
        again.histories, again.summaries, again.ids = stub.histories, stub.summaries, stub.ids
        code, out, err = sync(online, tmp_path)
        assert code == 0, out + err
        assert again.rows == mirrored(folder)
        assert again.summary["best"] == json.loads((folder / "summary.json").read_text())["best"]["value"]
