"""slurm/train.sbatch on the real daemons: what a cluster does to a run, and the run is equal to the one that nobody touched."""

from __future__ import annotations

import os
import signal
import socket
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import psutil
import pytest

from tests.cluster.daemons import TestCluster
from tests.cluster.jobs import Job, submit
from tests.trainers import ROOT, Zygote, run_file, same, step_of
from trainer.rundir import read_points
from trainer.track.cursor import count_rows

EVERY = 5
CPU: dict[str, Any] = {"device": "cpu", "threads": 1, "timeout": 30}


def run(folder: Path, *, steps: int, slow: float = 0.0, processes: int = 1, **sections: Any) -> Path:
    """A run file; `slow` seconds in every forward pass change nothing of what is learnt."""
    model: dict[str, Any] = {"source": f"python:{ROOT}/tests/network.py:small", "args": {"slow": slow}}
    sections = {
        "model": model, "parallel": {**CPU, "processes": processes}, "checkpoint": {"every": f"{EVERY} steps"},
        "train": {"steps": steps}, "evaluate": {"every": "20 steps"}, **sections,
    }  # fmt: skip
    return run_file(folder, **sections)


@pytest.fixture(scope="module")
def reference(zygote: Zygote, tmp_path_factory: pytest.TempPathFactory) -> dict[int, Path]:
    """The runs that nobody touched, by world size; started without Slurm."""
    found = {}
    for world, steps in ((4, 130), (1, 40)):
        folder = tmp_path_factory.mktemp(f"untouched{world}")
        codes = zygote.run(run(folder, steps=steps, processes=world), folder, world=world)
        assert codes == [0] * world
        found[world] = folder / "run"
    return found


def ends(job: Job) -> list[tuple[str, int]]:
    return [(e["verdict"], e["step"]) for e in job.events() if e["event"] == "end"]


@pytest.fixture(scope="module")
def aside(daemons: TestCluster, tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[Job, Job, Job]]:
    """Three jobs on the fourth node that mostly wait, started before the other tests and looked at after them.

    The first is warned 20 s before its limit (a minute is the shortest; Slurm looks every half minute and may warn a minute
    early). The second fails alike in every start. The third is not warned: at its limit its ranks get SIGTERM.
    """
    share = ("--nodelist=node4", "--gpus-per-node=1", "--cpus-per-task=1")
    folder = tmp_path_factory.mktemp("aside")
    limited = submit(daemons, run(folder / "limited", steps=40, slow=1.2), "--time=1", "--signal=USR1@20", *share)
    failing = {"source": f"python:{ROOT}/tests/broken.py:failing", "args": {"rank": 0, "kind": "value"}}
    crashing = submit(daemons, run(folder / "crashing", steps=40, model=failing), *share)
    late = submit(daemons, run(folder / "late", steps=40, slow=2.3), "--time=1", "--signal=CONT@1", *share)
    daemons.kept |= {limited.id, crashing.id, late.id}
    yield limited, crashing, late
    daemons.kept.clear()
    daemons.cancel_all()


@pytest.mark.timeout(600)
@pytest.mark.usefixtures("aside")
def test_two_nodes_through_all_that_a_cluster_does(cluster: TestCluster, tmp_path: Path, reference: dict[int, Path]) -> None:
    """A requeue, a preemption, kill -9 of a rank, of a node's launcher and of slurmd, one after the other, in one run."""
    tracked = {"every": 1, "wandb": {"mode": "offline"}}
    job = submit(cluster, run(tmp_path, steps=130, slow=0.25, processes=2, track=tracked), "--exclude=node4", nodes=2)

    job.running_at(7)  # 1: an operator requeues it
    cluster.run("scontrol", "requeue", job.id)
    first = job.wait_for_end(1)
    started, stopped = job.steps()[0]
    assert started == 0
    assert stopped == step_of(job.folder)  # nothing is redone after a signal
    assert first["verdict"] == "cancelled"  # Slurm itself queues it again, the script must not

    job.running_at(stopped + 7)  # 2: a job of the other partition preempts it
    theirs = ",".join(job.events()[-1]["nodes"])
    urgent = cluster.run("sbatch", "--parsable", "--partition=urgent", f"--nodelist={theirs}", "--nodes=2", "--exclusive",
                         "--output=/dev/null", "--wrap=sleep 1")  # fmt: skip
    second = job.wait_for_end(2)
    assert second["verdict"] == "requeue"
    assert job.steps()[1] == (stopped, step_of(job.folder))
    cluster.wait(urgent.stdout.strip(), ["COMPLETED"], 60)

    at = job.running_at(second["step"] + 7, rank=3)  # 3: a rank of the other node is killed
    os.kill(at["pid"], signal.SIGKILL)
    third = job.wait_for_end(3)
    assert third["verdict"] == "requeue"
    assert 0 <= at["step"] - third["step"] <= EVERY + 1  # at most one interval is redone

    job.running_at(third["step"] + 7)  # 4: the launcher of the second node is killed
    nodes = job.events()[-1]["nodes"]
    (launcher,) = [p for p in job.processes("launcher.node", nodes[1]) if p.parent() and "slurmstepd" in p.parent().name()]  # type: ignore[union-attr]
    launcher.kill()
    fourth = job.wait_for_end(4)
    assert fourth["verdict"] == "requeue"
    assert fourth["reason"]

    job.running_at(fourth["step"] + 7)  # 5: slurmd of the first node is killed, its steps go on
    nodes = job.events()[-1]["nodes"]
    cluster.kill(nodes[0])
    job.wait("PENDING", "COMPLETING", timeout=60)
    cluster.start_node(nodes[0])

    assert job.wait("COMPLETED", "FAILED", timeout=120) == "COMPLETED", job.text()
    same(job.folder, reference[4])
    assert job.processes("train") == []
    for before, after in zip(job.steps(), job.steps()[1:], strict=False):
        assert after[0] >= before[0]

    fragments = list((job.folder / "wandb").glob("offline-run-*"))  # each attempt's; W&B joins them by the run's id
    assert {fragment.name.rpartition("-")[2] for fragment in fragments} == {(job.folder / "wandb" / "id").read_text().strip()}
    assert sum(map(count_rows, fragments)) == len(read_points(job.folder / "metrics.jsonl"))


def test_scancel_saves_does_not_requeue_and_leaves_no_process(
    cluster: TestCluster, tmp_path: Path, reference: dict[int, Path]
) -> None:
    helper = "trap '' TERM USR1; while true; do sleep 1; done"  # a child that ignores what the job is told
    model = {"source": f"python:{ROOT}/tests/network.py:small", "args": {"slow": 0.05, "helper": helper}}
    file = run(tmp_path, steps=40, model=model)
    job = submit(cluster, file)
    job.running_at(8)
    assert job.processes(helper)
    began = time.monotonic()
    cluster.run("scancel", job.id)
    end = job.wait_for_end(1)
    took = time.monotonic() - began
    assert end["verdict"] == "cancelled"
    assert end["step"] == job.steps()[0][1]
    assert end["step"] >= 8
    assert took < 10
    job.wait("CANCELLED", timeout=30)
    assert job.processes(helper) == []
    again = submit(cluster, file)  # a person goes on with it
    assert again.wait("COMPLETED", "FAILED") == "COMPLETED", again.text()
    same(job.folder, reference[1])
    assert again.processes(helper) == []


def test_a_mistake_in_the_run_is_not_queued_again(cluster: TestCluster, tmp_path: Path) -> None:
    file = run(tmp_path, steps=40)
    job = submit(cluster, file, overrides=("optimizer.lrr=1",))
    assert job.wait("FAILED", "COMPLETED", timeout=30) == "FAILED"
    assert "unknown key 'optimizer.lrr'; did you mean 'lr'?" in job.text()
    assert cluster.restarts(job.id) == 0
    assert not job.folder.exists()


@pytest.mark.parametrize(("address", "which"), [("127.0.0.1", 0), ("127.0.0.2", 0), ("127.0.0.2", 1)])
def test_a_taken_port_is_passed_over(cluster: TestCluster, tmp_path: Path, address: str, which: int) -> None:
    """Ports follow from the job's id: one for the ranks, the next for the nodes to meet.

    One at the loopback address is seen before it is used; one at another address only when it is to be opened.
    """
    last = cluster.run("sbatch", "--parsable", "--hold", "--wrap=true", "--output=/dev/null").stdout.strip()
    number = int(last) + 1
    with socket.socket() as taken:
        taken.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        port = 20000 + (number * 2 % 12000 + 2) % 12000
        taken.bind((address, port + which))
        taken.listen()
        job = submit(cluster, run(tmp_path, steps=6), nodes=2)
        assert job.id == str(number)
        assert job.wait("COMPLETED", "FAILED") == "COMPLETED", job.text()
    text = (job.folder / "log" / "accelerate-0.yaml").read_text()
    assert "num_machines: 2" in text
    assert cluster.restarts(job.id) == 0
    assert not (job.folder / "log" / "bad-nodes.jsonl").exists()
    assert ("was taken in the meantime" in job.text()) == (address != "127.0.0.1")


def test_a_node_that_hangs_is_named_and_left_out(cluster: TestCluster, tmp_path: Path) -> None:
    """The second node stops in its check (SIGSTOP: as a dead driver or file system would have it)."""
    job = submit(cluster, run(tmp_path, steps=10), "--exclude=node1", nodes=2, env={"GRAFT_MEET_WITHIN": "8"})
    deadline = time.monotonic() + 30
    stopped: list[psutil.Process] = []
    while not stopped and time.monotonic() < deadline:
        stopped = job.processes("launcher.node", "node3")
        time.sleep(0.02)
    for process in stopped:
        process.send_signal(signal.SIGSTOP)
    assert job.wait("COMPLETED", "FAILED", timeout=120) == "COMPLETED", job.text()
    begins = [e["nodes"] for e in job.events() if e["event"] == "begin"]
    (first, _) = [e for e in job.events() if e["event"] == "end"]
    assert begins[0] == ["node2", "node3"]
    assert first["exclude"] == ["node3"]
    assert "node3" in first["reason"]
    assert begins[1] == ["node2", "node4"]  # what the submission excluded stays excluded


def test_a_crash_that_repeats_stops_after_three(cluster: TestCluster, aside: tuple[Job, Job, Job]) -> None:
    _, crashing, _ = aside
    assert crashing.wait("FAILED", "COMPLETED", timeout=150) == "FAILED"
    assert [verdict for verdict, _ in ends(crashing)] == ["requeue", "requeue", "stop"]
    assert "3 crashes in a row" in crashing.events()[-1]["reason"]
    assert "bad things" in crashing.text()
    assert cluster.restarts(crashing.id) == 2
    again = submit(cluster, crashing.folder.parent.parent / "run.yaml")  # somebody hands it in anew: it is tried, once
    fourth = again.wait_for_end(4)
    assert fourth["verdict"] == "requeue", again.text()
    assert "bad things" in fourth["reason"]


def test_time_limit(aside: tuple[Job, Job, Job], reference: dict[int, Path]) -> None:
    """The run saves when it is warned, is queued again, and comes to its end in several starts."""
    limited, _, _ = aside
    assert limited.wait("COMPLETED", "FAILED", "TIMEOUT", timeout=250) == "COMPLETED", limited.text()
    same(limited.folder, reference[1])
    verdicts = ends(limited)
    assert {verdict for verdict, _ in verdicts[:-1]} == {"requeue"}
    assert all("SIGUSR1" in e["reason"] for e in limited.events() if e.get("verdict") == "requeue")
    assert [start for start, _ in limited.steps()] == [0, *(step for _, step in verdicts[:-1])]  # nothing was done twice
    saved = [e["time"] for e in limited.attempts() if e["event"] == "end"]
    judged = [e["time"] for e in limited.events() if e["event"] == "end"]
    assert max(end - save for save, end in zip(saved, judged, strict=True)) < 5  # seconds from the save to the end of the job


def test_a_limit_that_was_not_told_in_time(aside: tuple[Job, Job, Job], reference: dict[int, Path]) -> None:
    """Slurm queues no job again whose time is over; the script does, and nothing is redone."""
    _, _, late = aside
    assert late.wait("COMPLETED", "FAILED", "TIMEOUT", timeout=300) == "COMPLETED", late.text()
    same(late.folder, reference[1])
    assert ends(late)[0][0] == "requeue"
    assert "SIGTERM" in late.events()[1]["reason"]
    assert [start for start, _ in late.steps()] == [0, *(step for _, step in ends(late)[:-1])]
