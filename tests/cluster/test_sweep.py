"""Sweeps on a real Slurm: one array, each member once, whatever happens to the controller."""

from __future__ import annotations

import json
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest

from launcher.sweep import array, sweep
from launcher.sweep.members import load_sweep
from tests.cluster.daemons import TestCluster
from tests.trainers import ROOT, run_file
from trainer.rundir import RunDir, read_points
from trainer.rundir.sweep import SweepDir

LIMIT = 5.0  # seconds for a thousand members on two cores that nobody else uses


class Login:
    """A login node: a folder with a run file and a sweep file, and graft."""

    def __init__(self, cluster: TestCluster, folder: Path) -> None:
        self.cluster, self.folder, self.runs = cluster, folder, folder / "runs"

    def write(self, over: dict[str, Sequence[Any]], *, steps: int = 6, slow: float = 0.0, **keys: Any) -> list[RunDir]:
        """Write both files; the run folders of the members."""
        model = {"source": f"python:{ROOT}/tests/network.py:small", "args": {"slow": slow}}
        run_file(self.folder, model=model, train={"steps": steps}, evaluate={"every": "100 steps"})
        (self.folder / "sweep.yaml").write_text(json.dumps({"name": "search", "run": "run.yaml", "over": over, **keys}))
        return [member.rundir for member in load_sweep(self.folder / "sweep.yaml", [], self.runs).members]

    def graft(self, *arguments: str, check: bool = True) -> subprocess.CompletedProcess[str]:
        done = subprocess.run(
            [sys.executable, "-m", "launcher", *arguments], cwd=self.folder, capture_output=True, text=True, timeout=120,
            env={**self.cluster.environment, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}, check=False,
        )  # fmt: skip
        assert not check or done.returncode == 0, done.stderr
        return done

    def sweep(self, *options: str) -> dict[str, Any]:
        said: dict[str, Any] = json.loads(self.graft("sweep", "sweep.yaml", "--json", *options).stdout)
        return said

    def wait(self, timeout: float = 120) -> None:
        """Until no job is left."""
        deadline = time.monotonic() + timeout
        while time.monotonic() < deadline:
            left = self.cluster.run("squeue", "-h", check=False)
            if left.returncode == 0 and not left.stdout.strip():
                return
            time.sleep(0.3)
        raise AssertionError(f"jobs are left:\n{left.stdout}\n{self.logs()}\n{self.cluster.logs()}")

    def logs(self) -> str:
        return "\n".join(f"== {f.name}\n{f.read_text()[-1500:]}" for f in sorted((self.runs / "search" / "log").glob("*.out")))

    def submissions(self) -> list[list[str]]:
        """The members of each array, by name."""
        files = sorted((self.runs / "search" / "arrays").glob("*/members.txt"))
        return [[Path(line).name for line in file.read_text().splitlines()] for file in files]


@pytest.fixture
def login(cluster: TestCluster, tmp_path: Path) -> Login:
    return Login(cluster, tmp_path)


def begun(member: RunDir) -> list[str]:
    """The jobs that began to train a member."""
    return [event["job"] for event in read_points(member.jobs) if event["event"] == "begin"]


def state(member: RunDir) -> str:
    marker = member.marker()
    return marker.state if marker is not None else "none"


def test_a_sweep_is_one_array_and_only_what_is_unfinished_is_handed_in_again(login: Login) -> None:
    members = login.write({"optimizer.lr": [1e-3, 1e-2], "train.seed": [0, 1]}, parallel=4)
    dry = login.sweep("--dry-run")
    assert "#SBATCH --array=0-3%4" in dry["script"]
    assert not login.runs.exists()
    first = login.sweep()
    assert first["submitted"] == 4
    job = first["job"]
    assert [m["state"] for m in first["members"]] == [f"job {job}_{index}" for index in range(4)]
    second = login.sweep()
    assert (second["job"], second["submitted"]) == (None, 0), "they wait or run already"
    login.wait()
    assert [state(member) for member in members] == ["DONE"] * 4, login.logs()
    assert [begun(member) for member in members] == [[f"{job}_{index}"] for index in range(4)]
    assert [json.loads(member.job.read_text())["id"] for member in members] == [f"{job}_{index}" for index in range(4)]
    assert login.sweep()["submitted"] == 0
    (members[2].path / "DONE").unlink()  # as if it had been killed at its last step
    again = login.sweep()
    assert again["submitted"] == 1
    login.wait()
    assert login.submissions()[1] == [members[2].name]
    assert state(members[2]) == "DONE", login.logs()
    assert begun(members[2]) == [f"{job}_2", f"{again['job']}_0"]
    assert sum(len(begun(member)) for member in members) == 5
    table = login.graft("runs", "--sweep", "search").stdout
    assert "4 members: 4 done" in table
    rows = SweepDir(login.runs / "search").rows()[1]
    assert [row.best for row in rows] == sorted((row.best for row in rows), key=lambda best: -(best or 0))


def test_a_controller_that_dies_and_a_member_that_is_requeued(login: Login) -> None:
    """No member is lost or doubled, and the requeued one goes on alone."""
    members = login.write({"train.seed": list(range(4))}, steps=60, slow=0.1, parallel=2)
    job = login.sweep()["job"]
    deadline = time.monotonic() + 60
    while not any(member.metrics.exists() for member in members) and time.monotonic() < deadline:
        time.sleep(0.1)
    login.cluster.kill("slurmctld")
    refused = login.graft("sweep", "sweep.yaml", check=False)
    assert refused.returncode in (1, 3), refused.stdout
    assert "squeue" in refused.stderr
    login.cluster.start_controller()
    deadline = time.monotonic() + 30
    while login.cluster.run("squeue", "-h", check=False).returncode and time.monotonic() < deadline:
        time.sleep(0.2)
    again = login.sweep()
    assert again["submitted"] == 0, "they are all in the queue still"
    deadline = time.monotonic() + 60
    while not members[3].metrics.exists() and time.monotonic() < deadline:
        time.sleep(0.1)
    # the last member, whose own number is that of the array: what its script then says to Slurm must mean it alone
    login.cluster.run("scancel", "--signal=USR1", f"{job}_3")
    login.wait(180)
    assert [state(member) for member in members] == ["DONE"] * 4, login.logs()
    jobs = [f"{job}_{index}" for index in range(4)]
    assert [begun(member) for member in members] == [[jobs[0]], [jobs[1]], [jobs[2]], [jobs[3], jobs[3]]]
    body = str(login.runs / "search" / "arrays" / "0001" / "train.sbatch")
    assert [member.read_json(member.job)["script"] for member in members] == [body] * 4, "what `graft resume` hands in"
    for member in members:
        steps = [point["step"] for point in read_points(member.metrics) if "train/loss" in point]
        assert steps == list(range(1, 61)), "each point once"


def test_a_submission_that_was_not_noted_is_found_in_the_queue(login: Login) -> None:
    """As after a kill between sbatch and the notes: what is queued is known by the script's path alone."""
    members = login.write({"train.seed": [0, 1, 2]})
    login.cluster.run("scontrol", "update", "PartitionName=main", "State=DOWN")
    try:
        job = login.sweep()["job"]
        for member in members:
            member.job.unlink()
        rows = json.loads(login.graft("runs", "--sweep", "search", "--json").stdout)["members"]
        assert {row["state"] for row in rows} == {"queued"}
        assert {m["state"] for m in login.sweep()["members"]} == {f"job {job}_{index}" for index in range(3)}
        assert [json.loads(member.job.read_text())["id"] for member in members] == [f"{job}_{index}" for index in range(3)]
    finally:
        login.cluster.run("scontrol", "update", "PartitionName=main", "State=UP")


def test_what_slurm_refuses_is_told_and_can_be_handed_in_again(login: Login) -> None:
    login.write({"train.seed": [0, 1]})
    refused = login.graft("sweep", "sweep.yaml", "resources.partition=nowhere", check=False)
    assert refused.returncode == 3
    assert "sbatch refused" in refused.stderr
    assert "partition" in refused.stderr
    login.cluster.run("scontrol", "update", "PartitionName=main", "State=DOWN")
    try:
        assert login.sweep()["submitted"] == 2
    finally:
        login.cluster.run("scontrol", "update", "PartitionName=main", "State=UP")


def test_more_members_than_an_array_of_the_site_holds_come_in_turns(login: Login, monkeypatch: pytest.MonkeyPatch) -> None:
    login.write({"train.seed": [0, 1, 2]})
    for name, value in login.cluster.environment.items():
        monkeypatch.setenv(name, value)
    monkeypatch.chdir(login.folder)
    assert array.most() == 5001, "MaxArraySize of the test cluster"
    monkeypatch.setattr(array, "most", lambda: 2)
    login.cluster.run("scontrol", "update", "PartitionName=main", "State=DOWN")
    try:
        for handed_in in (2, 1, 0):
            before = len(login.cluster.run("squeue", "-h", "-r", "-o", "%i").stdout.split())
            assert sweep(Path("sweep.yaml"), [], login.runs, local=False, dry=False, as_json=False) == 0
            after = len(login.cluster.run("squeue", "-h", "-r", "-o", "%i").stdout.split())
            assert after - before == handed_in
    finally:
        login.cluster.run("scontrol", "update", "PartitionName=main", "State=UP")
    assert [len(members) for members in login.submissions()] == [2, 1]


def test_a_thousand_members_are_one_array_in_seconds(login: Login) -> None:
    login.write({"train.seed": list(range(50)), "optimizer.lr": [n * 1e-4 for n in range(1, 21)]}, parallel=8)
    login.cluster.run("scontrol", "update", "PartitionName=main", "State=DOWN")
    try:
        began = time.monotonic()
        said = login.sweep()
        seconds = time.monotonic() - began
    finally:
        login.cluster.run("scontrol", "update", "PartitionName=main", "State=UP")
    assert said["submitted"] == 1000
    assert len(login.cluster.run("squeue", "-h", "-r", "-o", "%i").stdout.split()) == 1000
    assert len(list(login.runs.glob("search-*/job.json"))) == 1000
    assert seconds < 4 * LIMIT, "four times the goal: other tests may be running"
