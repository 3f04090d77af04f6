"""The launcher with real processes: what it starts, what signals do, what is left when it ends.

The trainer is a stand-in that registers its ranks and leaves markers as the real one does, without torch.
"""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import psutil
import pytest
from PIL import Image

ROOT = Path(__file__).resolve().parents[2]
STAND_IN = """
import ctypes, json, os, signal, socket, subprocess, sys, time
from pathlib import Path

if os.environ.get("GRAFT_LAUNCHED") == "1":
    ctypes.CDLL(None).prctl(1, signal.SIGKILL)
import psutil
from trainer.rundir import Lease, RunDir

if sys.argv[1] != "train":
    print(json.dumps(sys.argv[1:]))
    sys.exit(7)
folder, rank, behaviour = RunDir(Path(sys.argv[2])), int(os.environ.get("RANK", "0")), os.environ["BEHAVIOUR"]
received = []


def note(**facts):
    (folder.path / f"seen-{rank}.json").write_text(json.dumps(facts))


def handler(number, frame):
    received.append(signal.Signals(number).name)


def register():
    folder.ranks.mkdir(parents=True, exist_ok=True)
    facts = {"host": socket.gethostname(), "pid": os.getpid(), "started": psutil.Process().create_time(), "rank": rank}
    (folder.ranks / f"rank-{rank:05d}.json").write_text(json.dumps(facts))


environment = {key: os.environ.get(key) for key in ("WORLD_SIZE", "GRAFT_WORLD", "OMP_NUM_THREADS", "GRAFT_LAUNCHED")}
note(pid=os.getpid(), argv=sys.argv[1:], received=[], **environment)
if behaviour == "obey":
    time.sleep(float(os.environ.get("SLOW_START", "0")))
    for number in (signal.SIGTERM, signal.SIGUSR1):
        signal.signal(number, handler)
    lease = Lease(folder.lease) if rank == 0 else None
    register()
    while not received:
        time.sleep(0.02)
    time.sleep(0.5)  # the time to save; a signal that comes twice would be noted
    note(pid=os.getpid(), received=received, **environment)
    if rank == 0:
        folder.mark("REQUEUE", received[0], 75, 3)
        lease.release()
    sys.exit(0 if environment["WORLD_SIZE"] else 75)
if behaviour == "stubborn":
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    child = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(60)"], start_new_session=True)
    note(pid=os.getpid(), child=child.pid)
    register()
    time.sleep(60)
if behaviour == "lingering child":
    child = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(60)"], start_new_session=True)
    note(pid=os.getpid(), child=child.pid)
if behaviour == "mistake":
    print("graft: model.source: no such network\\n  known: vgg16", file=sys.stderr)
    if rank == 0:
        folder.mark("FAILED", "model.source: no such network\\n  known: vgg16", 2)
    sys.exit(2)
if behaviour == "too large" and not (folder.path / "smaller").exists():
    (folder.path / "smaller").touch()
    folder.mark("REQUEUE", "a micro-batch of 12 does not fit", 75, 3, again=True)
    sys.exit(75)
if behaviour == "silent failure":
    folder.mark("FAILED", "rank 1 does not answer", 1)
    sys.exit(1)
if behaviour == "killed":
    (folder.logs / f"rank-{rank:05d}.log").write_text("step 17 loss 0.3\\n")
    if rank == int(os.environ.get("VICTIM", "0")):
        os.kill(os.getpid(), signal.SIGKILL)
    signal.signal(signal.SIGTERM, signal.SIG_DFL)  # as a trainer ends when its collective fails
    time.sleep(60)
if rank == 0:
    print("12% loss 0.5")
    folder.mark("DONE", "all steps", 0, 10)
"""


class Work:
    """A folder with data, a run file and the stand-in."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.run = folder / "runs" / "small"
        for name in ("cat", "dog"):
            (folder / "images" / name).mkdir(parents=True)
            for number in range(4):
                Image.new("L", (8, 8), number).save(folder / "images" / name / f"{number}.png")
        (folder / "small.yaml").write_text(
            "name: small\nmodel: {source: 'torchvision:resnet18'}\nstrategy: {kind: full}\ndata: {train: 'folder:images'}\n"
            "optimizer: {kind: sgd, lr: 0.1}\ntrain: {global_batch: 4}\nparallel: {device: cpu}\n"
        )
        package = folder / "standin" / "trainer"
        package.mkdir(parents=True)
        (package / "__init__.py").write_text(f"__path__ = [{str(package)!r}, {str(ROOT / 'trainer')!r}]\n")
        (package / "__main__.py").write_text(STAND_IN)
        # as an installed command is started: the working directory is not searched for modules
        (folder / "standin" / "graft.py").write_text("from launcher.cli import main\n\nmain()\n")
        self.started: list[subprocess.Popen[str]] = []

    def start(self, behaviour: str, *arguments: str, **environment: str) -> subprocess.Popen[str]:
        """`graft train small.yaml`, or `graft ARGUMENTS`."""
        words = [str(self.folder / "standin" / "graft.py"), *(arguments or ("train", "small.yaml"))]
        process = subprocess.Popen(
            [sys.executable, *words], cwd=self.folder, text=True,
            stdout=subprocess.PIPE, stderr=subprocess.PIPE,
            env={**os.environ, "PYTHONPATH": f"{self.folder / 'standin'}:{ROOT}", "BEHAVIOUR": behaviour, **environment},
        )  # fmt: skip
        self.started.append(process)
        return process

    def seen(self, rank: int = 0) -> dict[str, Any]:
        """What a rank noted last."""
        return json.loads((self.run / f"seen-{rank}.json").read_text())  # type: ignore[no-any-return]

    def registered(self, ranks: int = 1) -> bool:
        return len(list((self.run / "log" / "ranks").glob("rank-*.json"))) == ranks

    def pids(self) -> list[int]:
        """Every process that the stand-ins told of."""
        notes = [json.loads(file.read_text()) for file in self.run.glob("seen-*.json")]
        return [note[key] for note in notes for key in ("pid", "child") if key in note]


@pytest.fixture
def work(tmp_path: Path) -> Iterator[Work]:
    work = Work(tmp_path)
    yield work
    for process in work.started:
        if process.poll() is None:
            process.kill()
        process.communicate()


def until(condition: Callable[[], bool], seconds: float = 30.0) -> None:
    """Wait for a condition that a process brings about; fails when it does not come."""
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, "it did not happen in time"
        time.sleep(0.02)


def gone(pids: list[int]) -> bool:
    return all(not psutil.pid_exists(pid) or psutil.Process(pid).status() == psutil.STATUS_ZOMBIE for pid in pids)


def test_what_the_ranks_are_given_and_a_done_run(work: Work) -> None:
    process = work.start("done", "train", "small.yaml", "--accept-changes", "parallel.threads=3")
    out, err = process.communicate(timeout=30)
    assert process.returncode == 0, err
    assert "20 steps of 4 samples" in out
    assert "12% loss 0.5" in out, "the progress of rank 0 reaches the terminal"
    seen = work.seen()
    assert (seen["WORLD_SIZE"], seen["GRAFT_WORLD"], seen["OMP_NUM_THREADS"], seen["GRAFT_LAUNCHED"]) == (None, "1", "3", "1")
    assert seen["argv"] == ["train", str(work.run), "--accept-changes"]

    again = work.start("done", "train", "small.yaml", "parallel.threads=3")
    out, _ = again.communicate(timeout=30)
    assert again.returncode == 0
    assert "is done already" in out
    assert work.seen()["pid"] == seen["pid"], "a finished run was started again"


def test_an_attempt_that_was_too_large_is_followed_by_the_next(work: Work) -> None:
    process = work.start("too large")
    _, err = process.communicate(timeout=60)
    assert process.returncode == 0, err
    assert (work.run / "smaller").exists()
    assert (work.run / "DONE").exists()


@pytest.mark.parametrize(("sent", "arrives"), [("SIGTERM", "SIGTERM"), ("SIGUSR1", "SIGUSR1"), ("SIGINT", "SIGTERM")])
def test_a_signal_reaches_the_rank_once_and_the_marker_decides(work: Work, sent: str, arrives: str) -> None:
    process = work.start("obey")
    until(work.registered)
    process.send_signal(signal.Signals[sent])
    process.send_signal(signal.SIGTERM)
    time.sleep(0.3)
    process.send_signal(signal.SIGTERM)
    process.communicate(timeout=30)
    assert process.returncode == 75
    assert work.seen()["received"] in ([arrives], ["SIGTERM"]), "two signals in one instant may be seen in either order"


def test_an_early_signal_waits_for_the_handlers(work: Work) -> None:
    process = work.start("obey", SLOW_START="1.5")
    until(lambda: (work.run / "seen-0.json").exists())
    process.terminate()
    os.kill(work.seen()["pid"], signal.SIGTERM)  # as a scheduler sends it to every process: ignored until the trainer handles it
    os.kill(work.seen()["pid"], signal.SIGUSR1)
    process.communicate(timeout=30)
    assert process.returncode == 75
    assert work.seen()["received"] == ["SIGTERM"]


def test_a_launcher_killed_takes_its_rank_along(work: Work) -> None:
    process = work.start("obey")
    until(work.registered)
    process.kill()
    until(lambda: gone(work.pids()), 2)


def test_ctrl_c_twice_ends_even_what_ignores_signals(work: Work) -> None:
    process = work.start("stubborn")
    until(work.registered)
    process.send_signal(signal.SIGINT)
    time.sleep(0.5)
    assert process.poll() is None
    process.send_signal(signal.SIGINT)
    _, err = process.communicate(timeout=10)
    assert process.returncode == 130
    assert "Ctrl-C again" in err
    assert len(work.pids()) == 2
    assert gone(work.pids())


def test_no_process_is_left_behind_by_a_run_that_ends(work: Work) -> None:
    process = work.start("lingering child")
    process.communicate(timeout=30)
    assert process.returncode == 0
    assert gone(work.pids())


def test_a_failure_is_told_once_with_its_own_exit_code(work: Work) -> None:
    process = work.start("mistake")
    _, err = process.communicate(timeout=30)
    assert process.returncode == 2
    assert err == "graft: model.source: no such network\n  known: vgg16\n"


def test_a_failure_that_only_the_marker_tells_of_is_told_too(work: Work) -> None:
    process = work.start("silent failure")
    _, err = process.communicate(timeout=30)
    assert (process.returncode, err) == (1, "graft: rank 1 does not answer\n")


def test_a_killed_rank_is_named_with_its_signal_and_its_log(work: Work) -> None:
    process = work.start("killed")
    _, err = process.communicate(timeout=30)
    assert process.returncode == 1
    assert "rank 0 was killed by SIGKILL" in err
    assert "step 17 loss 0.3" in err
    assert str(work.run / "log" / "rank-00000.log") in err


def test_a_second_run_in_the_folder_is_refused_and_the_holder_named(work: Work) -> None:
    first = work.start("obey")
    until(lambda: work.registered() and (work.run / "lease.json").exists())
    began = time.monotonic()
    second = work.start("obey")
    _, err = second.communicate(timeout=30)
    assert time.monotonic() - began < 5
    assert second.returncode == 3
    assert f"in use by process {work.seen()['pid']}" in err
    status = work.start("", "status", "small", "--json")
    assert json.loads(status.communicate(timeout=30)[0])["state"] == "running"
    first.terminate()
    first.communicate(timeout=30)
    listed = work.start("", "runs", "--json")
    assert [run["state"] for run in json.loads(listed.communicate(timeout=30)[0])] == ["stopped"]


def test_json_is_the_only_thing_on_stdout(work: Work) -> None:
    process = work.start("done", "train", "small.yaml", "--json")
    out, err = process.communicate(timeout=30)
    result = json.loads(out)
    assert (result["state"], result["code"], result["name"]) == ("done", 0, "small")
    assert "12% loss 0.5" in err


def test_the_commands_after_training_are_the_trainers(work: Work) -> None:
    work.start("done").communicate(timeout=30)
    for arguments, passed in [
        (["evaluate", "small", "folder:other", "--batch", "4"], ["evaluate", str(work.run), "folder:other", "--batch", "4"]),
        (["predict", "runs/small", "--json", "a.png"], ["predict", str(work.run), "--json", "a.png"]),
        (["evaluate", "--help"], ["evaluate", "--help"]),
    ]:
        process = work.start("", *arguments)
        out, err = process.communicate(timeout=30)
        assert process.returncode == 7, err
        assert json.loads(out) == passed


def test_a_trainer_of_the_users_own_is_not_run(work: Work) -> None:
    (work.folder / "trainer.py").write_text("raise SystemExit('the wrong trainer')\n")
    process = work.start("done")
    _, err = process.communicate(timeout=30)
    assert process.returncode == 0, err
    assert work.seen()["pid"]


def test_two_ranks_are_started_signalled_once_and_end_together(work: Work) -> None:
    process = work.start("obey", "train", "small.yaml", "--processes", "2")
    until(lambda: work.registered(2), 60)
    process.terminate()
    process.terminate()
    _, err = process.communicate(timeout=60)
    assert process.returncode == 75, err
    assert [work.seen(rank)["WORLD_SIZE"] for rank in (0, 1)] == ["2", "2"]
    assert [work.seen(rank)["received"] for rank in (0, 1)] == [["SIGTERM"], ["SIGTERM"]]
    assert "Traceback" not in err
    assert gone(work.pids())


def test_a_launcher_killed_takes_two_ranks_along(work: Work) -> None:
    process = work.start("obey", "train", "small.yaml", "--processes", "2")
    until(lambda: work.registered(2), 60)
    process.kill()
    until(lambda: gone(work.pids()), 2)


def test_one_of_two_ranks_killed_is_named_and_the_other_ended(work: Work) -> None:
    process = work.start("killed", "train", "small.yaml", "--processes", "2", VICTIM="1")
    _, err = process.communicate(timeout=90)
    assert process.returncode == 1
    assert "rank 1 was killed by SIGKILL" in err
    assert "Traceback" not in err
    assert len(work.pids()) == 2
    assert gone(work.pids())


def test_the_terminal_is_named_to_the_ranks_and_nothing_else_is() -> None:
    code = "from launcher.local import _environment; print(_environment(1, 1)['GRAFT_TERMINAL'])"
    leader, follower = os.openpty()
    try:
        for handle, said in ((follower, os.ttyname(follower)), (subprocess.DEVNULL, "")):
            done = subprocess.run(
                [sys.executable, "-c", code], stdout=subprocess.PIPE, stderr=handle, text=True, timeout=60, check=True,
                env={**os.environ, "PYTHONPATH": str(ROOT)},
            )  # fmt: skip
            assert done.stdout == f"{said}\n"
    finally:
        os.close(leader)
        os.close(follower)
