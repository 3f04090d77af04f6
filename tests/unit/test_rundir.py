"""The run folder: one writer, markers, and a record with each point once."""

from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from dataclasses import asdict, replace
from pathlib import Path

import pytest

from trainer.config import RefusedError, Run
from trainer.rundir import Lease, LeaseLostError, Record, RunDir, read_points, write_atomically
from trainer.rundir.lease import Holder, held_by, read_holder

ROOT = Path(__file__).resolve().parents[2]
HOLD = """
import sys, time
from pathlib import Path
from trainer.rundir import Lease

Lease(Path(sys.argv[1]))
print("held", flush=True)
time.sleep(60)
"""


@pytest.fixture
def other(tmp_path: Path) -> Iterator[subprocess.Popen[str]]:
    """Another process that holds the lease of tmp_path."""
    process = subprocess.Popen(
        [sys.executable, "-c", HOLD, str(tmp_path / "lease.json")], stdout=subprocess.PIPE, text=True,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
    )  # fmt: skip
    assert process.stdout is not None
    assert process.stdout.readline() == "held\n"
    yield process
    process.kill()
    process.communicate()


def run(**sections: object) -> Run:
    return Run.model_validate(
        {
            "name": "x",
            "model": {"source": "torchvision:resnet18"},
            "strategy": {"kind": "head"},
            "data": {"train": "digits"},
            "optimizer": {"kind": "sgd", "lr": 0.1},
            **sections,
        }
    )


def foreign(path: Path, **changed: object) -> Holder:
    """A lease as a process on another host would leave it."""
    holder = Holder("elsewhere", "boot", 1, 1.0, "token", 0, "2001-01-01 00:00:00", "python -m trainer")
    holder = replace(holder, **changed)  # type: ignore[arg-type]
    write_atomically(path, json.dumps(asdict(holder)))
    return holder


def test_a_second_writer_is_refused_at_once_and_told_who_holds_the_folder(tmp_path: Path, other: subprocess.Popen[str]) -> None:
    began = time.monotonic()
    with pytest.raises(RefusedError) as error:
        Lease(tmp_path / "lease.json")
    assert time.monotonic() - began < 1
    assert f"process {other.pid} on {socket.gethostname()}" in str(error.value)


def test_the_lease_of_a_killed_process_is_taken_over_at_once(tmp_path: Path, other: subprocess.Popen[str]) -> None:
    path = tmp_path / "lease.json"
    other.send_signal(signal.SIGKILL)
    other.wait()
    assert path.exists()
    assert held_by(path) is None
    began = time.monotonic()
    lease = Lease(path)
    assert time.monotonic() - began < 1
    lease.check()
    lease.release()
    assert not path.exists()


def test_a_pid_that_was_given_to_another_process_holds_nothing(tmp_path: Path) -> None:
    path = tmp_path / "lease.json"
    lease = Lease(path)
    mine = read_holder(path)
    lease.release()
    assert mine is not None
    foreign(path, **{**asdict(mine), "started": mine.started - 3600})
    assert held_by(path) is None


def test_of_many_that_start_at_once_one_gets_the_folder(tmp_path: Path) -> None:
    """Threads of one process count as the same living holder, so each that loses is refused by the lock alone."""
    taken, refused = [], []
    start = threading.Barrier(8)

    def take() -> None:
        start.wait()
        try:
            taken.append(Lease(tmp_path / "lease.json"))
        except RefusedError:
            refused.append(1)

    threads = [threading.Thread(target=take) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert (len(taken), len(refused)) == (1, 7)
    taken[0].release()


def test_a_holder_on_another_host_that_stands_still_is_stale_whatever_its_clock_says(tmp_path: Path) -> None:
    path = tmp_path / "lease.json"
    foreign(path)
    for shift in (-86400, 0, 86400):
        os.utime(path, (time.time() + shift,) * 2)
        began = time.monotonic()
        assert held_by(path, patience=0.4) is None
        assert 0.3 < time.monotonic() - began < 2


def test_a_holder_on_another_host_that_beats_is_alive_whatever_its_clock_says(tmp_path: Path) -> None:
    path = tmp_path / "lease.json"
    foreign(path, since="1999-01-01 00:00:00")
    stop = threading.Event()

    def beat() -> None:
        for number in range(1, 100):
            if stop.wait(0.1):
                return
            foreign(path, beat=number, since="1999-01-01 00:00:00")
            os.utime(path, (time.time() - 86400,) * 2)

    thread = threading.Thread(target=beat)
    thread.start()
    try:
        with pytest.raises(RefusedError, match="process 1 on elsewhere since 1999-01-01"):
            Lease(path, patience=2.0)
    finally:
        stop.set()
        thread.join()


def test_a_holder_that_was_replaced_must_stop(tmp_path: Path) -> None:
    path = tmp_path / "lease.json"
    lease = Lease(path, beat_every=0.05)
    lease.check()
    foreign(path, token="newer")
    with pytest.raises(LeaseLostError, match="process 1 on elsewhere"):
        lease.check()
    time.sleep(0.2)
    lease.release()
    holder = read_holder(path)
    assert holder is not None
    assert (holder.token, holder.beat) == ("newer", 0), "the old holder touched the lease of the new one"


def test_a_lease_beats(tmp_path: Path) -> None:
    path = tmp_path / "lease.json"
    lease = Lease(path, beat_every=0.05)
    deadline = time.monotonic() + 10
    while (holder := read_holder(path)) is None or holder.beat < 3:
        assert time.monotonic() < deadline
        time.sleep(0.02)
    lease.release()


def test_prepare_makes_the_folder_and_opens_it_again(tmp_path: Path) -> None:
    rundir = RunDir(tmp_path / "runs" / "x")
    rundir.prepare(run(), accept_changes=False)
    before = rundir.config.stat().st_mtime_ns
    rundir.prepare(run(), accept_changes=False)
    assert rundir.load() == run()
    assert rundir.config.stat().st_mtime_ns == before
    rundir.prepare(run(parallel={"processes": 2}), accept_changes=False)
    assert rundir.load().parallel.processes == 2
    rundir.metrics.write_text('{"step": 1}\n', encoding="utf-8")
    with pytest.raises(RefusedError, match=r"train\.seed: 0 -> 1"):
        rundir.prepare(run(train={"seed": 1}), accept_changes=False)
    assert rundir.load().train.seed == 0
    rundir.prepare(run(train={"seed": 1}), accept_changes=True)
    assert rundir.load().train.seed == 1


def test_a_run_that_never_learnt_takes_a_corrected_run_file_and_corrected_data(tmp_path: Path) -> None:
    rundir = RunDir(tmp_path)
    rundir.prepare(run(model={"source": "torchvision:resnet81"}), accept_changes=False)
    rundir.mark("FAILED", "no such network", 2)
    rundir.manifest.write_text('{"data": {}}\n', encoding="utf-8")
    rundir.metrics.touch()
    rundir.prepare(run(), accept_changes=False)
    assert rundir.load() == run()
    assert not rundir.manifest.exists()


@pytest.mark.parametrize("learnt", ["checkpoints/step-00000000", "metrics.jsonl", "lease.json"])
def test_a_run_that_learnt_or_is_running_does_not(tmp_path: Path, learnt: str) -> None:
    rundir = RunDir(tmp_path)
    rundir.prepare(run(), accept_changes=False)
    rundir.manifest.write_text('{"data": {}}\n', encoding="utf-8")
    (tmp_path / learnt).write_text("{}\n", encoding="utf-8")
    with pytest.raises(RefusedError, match="other settings"):
        rundir.prepare(run(train={"seed": 1}), accept_changes=False)
    assert rundir.load() == run()
    assert rundir.manifest.exists()


def test_a_folder_that_cannot_be_written_is_refused_with_the_reason(tmp_path: Path) -> None:
    with pytest.raises(RefusedError, match=r"cannot be written.*--runs FOLDER"):
        RunDir(Path("/proc/graft/x")).prepare(run(), accept_changes=False)
    (tmp_path / "file").touch()
    with pytest.raises(RefusedError, match="Not a directory"):
        RunDir(tmp_path / "file" / "x").prepare(run(), accept_changes=False)


def test_a_read_only_folder_is_refused(tmp_path: Path) -> None:
    """As a user without root's rights, in a process of its own."""
    locked = tmp_path / "locked"
    locked.mkdir(mode=0o555)
    code = (
        "import os, sys; from pathlib import Path\n"
        "from trainer.config import RefusedError, load\n"
        "from trainer.rundir import RunDir\n"
        "run = load(Path(sys.argv[2]))\n"
        "os.chdir(sys.argv[1])\n"
        "if os.getuid() == 0:\n    os.setuid(65534)\n"
        "try:\n    RunDir(Path('x')).prepare(run, accept_changes=False)\n"
        "except RefusedError as error:\n    print(error)\n"
    )
    file = tmp_path / "run.yaml"
    RunDir(tmp_path / "made").prepare(run(), accept_changes=False)
    file.write_text((tmp_path / "made" / "run.yaml").read_text())
    done = subprocess.run(
        [sys.executable, "-c", code, str(locked), str(file)], capture_output=True, text=True, timeout=30, check=False,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
    )  # fmt: skip
    assert done.stdout == "the run folder x cannot be written: Permission denied; choose another with --runs FOLDER\n"


def test_one_marker_at_a_time(tmp_path: Path) -> None:
    rundir = RunDir(tmp_path)
    assert rundir.marker() is None
    rundir.mark("FAILED", "the disk is full", 1, 7)
    rundir.mark("REQUEUE", "SIGUSR1", 75, 9)
    marker = rundir.marker()
    assert marker is not None
    assert (marker.state, marker.reason, marker.code, marker.step) == ("REQUEUE", "SIGUSR1", 75, 9)
    assert not (tmp_path / "FAILED").exists()
    (tmp_path / "REQUEUE").write_text('{"state": "REQ')
    assert rundir.marker() is None, "a torn marker says nothing"
    rundir.clear_markers()
    assert list(tmp_path.iterdir()) == []


def test_small_files_are_replaced_whole(tmp_path: Path) -> None:
    """A reader at any instant, and a kill in mid-write, sees an old text or a new one."""
    path = tmp_path / "file.json"
    code = (
        "import sys; from pathlib import Path; from trainer.rundir import write_atomically\n"
        "for n in range(10**6):\n    write_atomically(Path(sys.argv[1]), str(n % 10) * 20000)\n"
    )
    process = subprocess.Popen([sys.executable, "-c", code, str(path)], env={**os.environ, "PYTHONPATH": str(ROOT)})
    deadline = time.monotonic() + 20
    while not path.exists():
        assert time.monotonic() < deadline
        time.sleep(0.01)
    for _ in range(200):
        text = path.read_text()
        assert (len(text), len(set(text))) == (20000, 1)
    process.kill()
    process.wait()
    text = path.read_text()
    assert (len(text), len(set(text))) == (20000, 1)


def test_the_record_keeps_each_point_once_over_restarts(tmp_path: Path) -> None:
    path = tmp_path / "metrics.jsonl"
    record = Record(path, points=0)
    for step in range(1, 7):
        record.append({"step": step, "loss": step / 10})
    record.sync()
    record.close()
    with path.open("a") as file:
        file.write('{"step": 7, "lo')
    assert [point["step"] for point in read_points(path)] == [1, 2, 3, 4, 5, 6], "a torn last line is left out"

    record = Record(path, points=4)
    assert [json.loads(line)["step"] for line in path.read_text().splitlines()] == [1, 2, 3, 4]
    record.append({"step": 5, "loss": 0.55})
    record.close()
    assert [(point["step"], point["loss"]) for point in read_points(path)][-1] == (5, 0.55)

    Record(path, points=0).close()
    assert path.read_text() == ""


def test_a_point_is_in_the_file_at_once_and_is_strict_json(tmp_path: Path) -> None:
    path = tmp_path / "metrics.jsonl"
    record = Record(path, points=0)
    record.append({"step": 1, "loss": float("nan"), "lr": float("inf"), "note": "ä\n"})
    assert json.loads(path.read_text()) == {"step": 1, "loss": None, "lr": None, "note": "ä\n"}
    assert path.read_text().count("\n") == 1
    record.close()
    assert read_points(tmp_path / "missing.jsonl") == []


def test_a_run_that_is_older_than_the_residual_goes_on_without(tmp_path: Path) -> None:
    """Its resolved run file says nothing of it, so that it was not there; a run file that leaves it to graft agrees."""

    def translating(**task: object) -> Run:
        return Run.model_validate({
            "name": "r", "task": {"kind": "translate", "pairs": "grey", **task}, "model": {"source": "torchvision:resnet18"},
            "strategy": {"kind": "full"}, "data": {"train": "folder:/x"}, "optimizer": {"kind": "adam", "lr": 1e-3},
        })  # fmt: skip

    folder = RunDir(tmp_path / "r")
    folder.prepare(translating(residual=False), accept_changes=False)
    kept = folder.config.read_text()
    assert kept.count("residual: false") == 1
    folder.config.write_text("\n".join(line for line in kept.splitlines() if "residual" not in line) + "\n")
    folder.metrics.write_text("{}\n")
    assert getattr(folder.load().task, "residual", None) is False
    assert folder.difference(translating()) == []
    folder.prepare(translating(), accept_changes=False)
    assert folder.config.read_text() == kept
    with pytest.raises(RefusedError, match=r"task\.residual: false -> true"):
        folder.prepare(translating(residual=True), accept_changes=False)
