"""The look at a node, with real processes as nodes."""

from __future__ import annotations

import json
import socket
import subprocess
import sys
import time
from pathlib import Path

import pytest

from launcher import nodecheck
from tests.trainers import ROOT
from trainer.rundir import RunDir, read_points

MEET = """
import json, sys
from launcher.nodecheck import meet
index, count, port, timeout = map(int, sys.argv[1:])
nodes = [f"n{i}" for i in range(count)]
print(json.dumps(meet("a start", nodes=nodes, index=index, address="127.0.0.1", port=port, timeout=timeout)))
"""


@pytest.fixture
def folder(tmp_path: Path) -> RunDir:
    rundir = RunDir(tmp_path / "run")
    rundir.create()
    rundir.config.write_text("name: run\n")
    return rundir


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def start(index: int, count: int, port: int, timeout: int) -> subprocess.Popen[str]:
    words = [sys.executable, "-c", MEET, *map(str, (index, count, port, timeout))]
    return subprocess.Popen(words, cwd=ROOT, stdout=subprocess.PIPE, text=True)


def answers(nodes: list[subprocess.Popen[str]]) -> list[list[str]]:
    said = [node.communicate(timeout=60)[0] for node in nodes]
    return [json.loads(text.splitlines()[-1]) for text in said if text]


def test_a_good_node(folder: RunDir) -> None:
    began = time.monotonic()
    assert nodecheck.check_node(folder.path, gpus=0) == []
    assert time.monotonic() - began < 1
    assert [f.name for f in folder.path.iterdir() if f.name.startswith(".")] == []


def test_a_run_folder_that_is_not_mounted(tmp_path: Path) -> None:
    (problem,) = nodecheck.check_node(tmp_path / "gone", gpus=0)
    assert "is not there" in problem


def test_a_run_folder_that_cannot_be_written(folder: RunDir) -> None:
    subprocess.run(["mount", "-t", "tmpfs", "-o", "size=8k,nr_inodes=3", "tmpfs", str(folder.logs)], check=True)
    try:
        small = RunDir(folder.logs)
        small.config.write_text("name: run\n")
        (folder.logs / "full").write_text("")
        (problem,) = nodecheck.check_node(folder.logs, gpus=0)
    finally:
        subprocess.run(["umount", str(folder.logs)], check=True)
    assert "cannot be written" in problem


def test_memory_that_somebody_uses(folder: RunDir, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(nodecheck, "LEAST_MEMORY", 1 << 60)
    (problem,) = nodecheck.check_node(folder.path, gpus=0)
    assert "MiB of memory are free" in problem


def test_gpus_that_are_not_there(folder: RunDir, monkeypatch: pytest.MonkeyPatch) -> None:
    """Also on a machine that has some: none are visible."""
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "")
    assert nodecheck.check_node(folder.path, gpus=2) == ["0 GPUs are visible and 2 were granted"]


def test_gpus_that_do_not_answer(folder: RunDir, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(nodecheck, "GPU_WITHIN", 0.5)
    monkeypatch.setattr(nodecheck, "_look_at_gpus", lambda count, answer: time.sleep(60))  # as a call into a dead driver does
    (problem,) = nodecheck.check_node(folder.path, gpus=1)
    assert "the driver hangs" in problem


def test_nodes_meet() -> None:
    port = free_port()
    nodes = [start(index, 3, port, 40) for index in range(3)]
    assert answers(nodes) == [[], [], []]


def test_a_node_that_does_not_come_is_named_by_all() -> None:
    port = free_port()
    nodes = [start(index, 3, port, 6) for index in (0, 1)]
    assert answers(nodes) == [["n2"], ["n2"]]


def test_a_first_node_that_does_not_come_is_named_and_nobody_else() -> None:
    port = free_port()
    assert answers([start(1, 2, port, 1)]) == [["n0"]]


def test_a_bad_node_is_noted(folder: RunDir, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SLURM_JOB_ID", "5")
    monkeypatch.setenv("SLURM_RESTART_COUNT", "1")
    folder.report_bad("n1", "GPU 0 multiplies wrongly")
    folder.report_bad("n2", "no\nlines")
    first, second = read_points(folder.bad_nodes)
    assert (first["node"], first["problem"], first["job"], first["restart"]) == ("n1", "GPU 0 multiplies wrongly", "5", 1)
    assert second["problem"] == "no\nlines"


def test_a_taken_port_is_not_the_nodes_fault() -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.2", 0))
        taken.listen()
        with pytest.raises(nodecheck.PortTakenError):
            nodecheck.meet("a start", nodes=["n0", "n1"], index=0, address="127.0.0.1", port=taken.getsockname()[1], timeout=2)


def test_a_node_of_another_start_does_not_count() -> None:
    """Two jobs that came upon one port: whoever joins the other's store finds nothing of its own there."""
    port = free_port()
    other = [sys.executable, "-c", MEET.replace("a start", "another start"), "1", "2", str(port), "3"]
    first = start(0, 2, port, 3)
    stranger = subprocess.Popen(other, cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
    try:
        assert json.loads(first.communicate(timeout=60)[0].splitlines()[-1]) == ["n1"], "its second node never came"
        assert json.loads(stranger.communicate(timeout=60)[0].splitlines()[-1]) == ["n0"]
    finally:
        for process in (first, stranger):
            process.kill()
