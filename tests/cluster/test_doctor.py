"""`graft doctor` on real daemons: a site in order, and each thing that can be wrong with one."""

from __future__ import annotations

import json
import os
import resource
import shutil
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from launcher.doctor import examine
from launcher.doctor.check import Check
from tests.cluster.daemons import TestCluster
from tests.faults.test_disk import mounted

ROOT = Path(__file__).resolve().parents[2]
HEALTHY = 'partition: main\ntime: "1:00:00"\nnetwork: false\n'
MOUNTS = subprocess.run(["unshare", "--mount", "true"], capture_output=True).returncode == 0
Look = Callable[..., dict[str, Check]]


@pytest.fixture(scope="module")
def cluster() -> Iterator[TestCluster]:
    cluster = TestCluster()
    try:
        cluster.start()
        for node in ("node1", "node2") if MOUNTS else ():  # with mounts of their own, which `blinded` uses
            cluster.kill(node)
            cluster._spawn(
                node,
                [
                    "unshare",
                    "--mount",
                    shutil.which("slurmd", path="/usr/sbin:/sbin:/usr/bin") or "slurmd",
                    "-D",
                    "-N",
                    node,
                    "-f",
                    f"{cluster.folder}/slurm.conf",
                ],
            )
        yield cluster
    finally:
        cluster.stop()


@pytest.fixture
def look(cluster: TestCluster, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Look]:
    """Examines the cluster with a cluster file; afterwards neither a job nor a file may be left."""
    for name, value in cluster.environment.items():
        monkeypatch.setenv(name, value)
    server = socket.create_server(("127.0.0.1", 0))
    monkeypatch.setenv("HF_ENDPOINT", f"http://127.0.0.1:{server.getsockname()[1]}")
    monkeypatch.setenv("WANDB_BASE_URL", f"http://127.0.0.1:{_closed_port()}")
    monkeypatch.setenv("https_proxy", f"http://127.0.0.1:{_closed_port()}")  # so that download.pytorch.org is refused at once
    monkeypatch.setenv("XDG_CONFIG_HOME", str(tmp_path / "none"))
    monkeypatch.chdir(tmp_path)

    def examined(text: str, *, runs: Path = Path("runs"), login_only: bool = True, patience: float = 60.0) -> dict[str, Check]:
        clusters = tmp_path / "configs" / "clusters"
        clusters.mkdir(parents=True, exist_ok=True)
        (clusters / "default.yaml").write_text(text)
        before = set(runs.parent.resolve().rglob("*"))
        found = list(examine(None, runs, login_only=login_only, patience=patience))
        assert set(runs.parent.resolve().rglob("*")) == before, "files are left"
        assert all(check.advice for check in found if check.state in ("failed", "warning")), "a failure without advice"
        return {("node " if check.place == "nodes" else "") + check.name: check for check in found}

    with server:
        yield examined
    assert _until(lambda: not cluster.run("squeue", "-h").stdout), "a job is left"


def _closed_port() -> int:
    with socket.socket() as one:
        one.bind(("127.0.0.1", 0))
        return int(one.getsockname()[1])


def _until(seen: Callable[[], Any], timeout: float = 20.0) -> bool:
    deadline = time.monotonic() + timeout
    while time.monotonic() < deadline:
        if seen():
            return True
        time.sleep(0.1)
    return False


def test_a_site_in_order(look: Look, cluster: TestCluster) -> None:
    found = look(HEALTHY + "interface: lo\nscratch: /tmp\n", login_only=False)
    bad = {name: check for name, check in found.items() if check.state in ("failed", "not checked")}
    assert not bad, bad
    warned = {name.partition(" (")[0] for name, check in found.items() if check.state == "warning"}
    of_this_machine = {"file system", "room", "writing", "small files", "time to save", "node writing", "node limits"}
    assert {"W&B", "torch", "W&B key"} <= warned <= {"W&B", "torch", "W&B key"} | of_this_machine
    assert found["node compute nodes"].found == "the job ran on node1 and node2"
    assert found["node run folder"].state == found["node locks between nodes"].state == "ok"
    assert found["node renames between nodes"].state == found["node gloo between nodes"].state == "ok"
    assert "lo has an address" in found["node interface"].found
    assert "torch" in found["node python"].found
    assert next(check for name, check in found.items() if name.startswith("hub")).state == "ok"
    assert "refused" in next(check for name, check in found.items() if name.startswith("W&B (")).found.lower()


def test_what_is_wrong_on_the_nodes(look: Look) -> None:
    """GPUs that torch does not see (they are fake), an interface and a scratch folder that do not exist, servers out of reach."""
    closed = _closed_port()
    found = look(
        "partition: main\ngpus_per_node: 2\ninterface: ib7\nscratch: /nowhere/fast\n"
        f"environment: {{HF_ENDPOINT: 'http://127.0.0.1:{closed}', https_proxy: 'http://127.0.0.1:{closed}'}}\n",
        login_only=False,
    )
    assert found["node GPUs"].state == "failed"
    assert "sees 0, asked for 2" in found["node GPUs"].found
    assert found["node interface"].state == "failed"
    assert found["node interface"].found.startswith("ib7 does not exist; there are")
    assert found["node scratch"].found == "/nowhere/fast: it does not exist"
    assert found["node gloo between nodes"].state == "failed"
    assert found["node run folder"].state == found["node locks between nodes"].state == "ok"
    hub = found[f"node hub (127.0.0.1:{closed})"]
    assert (hub.state, "network: false" in hub.advice) == ("warning", True)


def test_an_interpreter_that_does_not_exist(look: Look) -> None:
    found = look(HEALTHY + "python: /nowhere/bin/python\n", login_only=False)
    assert found["python of the jobs"].state == "warning"
    assert found["node compute nodes"].state == "failed"
    assert "/nowhere/bin/python is not on" in found["node compute nodes"].found
    assert "`python`" in found["node compute nodes"].advice


def test_a_site_file_and_a_module_that_fail(look: Look, tmp_path: Path) -> None:
    (tmp_path / "site.sh").write_text("echo no such stack >&2\nreturn 1\n")
    found = look(HEALTHY + "site: site.sh\n", login_only=False)
    assert (found["site file"].state, found["node compute nodes"].state) == ("ok", "failed")
    assert "no such stack" in found["node compute nodes"].found
    (tmp_path / "site.sh").write_text("if true; then\n")
    assert look(HEALTHY + "site: site.sh\n")["site file"].state == "failed"


@pytest.mark.parametrize(
    ("text", "name", "says"),
    [
        ("partition: mian", "partition", "mian does not exist"),
        ("partition: main\ngpus_per_node: 9", "nodes", "no node of main has 9 GPUs; its nodes have 4 gpu"),
        ("partition: main\ngpus_per_node: 2\ngpu_type: h100", "nodes", "2 GPUs of type h100"),
        ("partition: main\nconstraint: fast", "nodes", "feature fast"),
        ('partition: main\ntime: "5:00:00"', "time limit", "5:00:00 is asked for, main gives 04:00:00"),
        ("partition: main\nmemory: 900G", "a job like ours", "configuration is not available"),
        ("partition: main\ngpus: 2", "cluster file", "gpus"),
    ],
)  # fmt: skip
def test_what_the_login_node_finds(look: Look, text: str, name: str, says: str) -> None:
    found = look(text)
    assert found[name].state == "failed"
    assert says in found[name].found
    assert found["node compute nodes"].state == "not checked"


def test_a_near_name_is_suggested(look: Look) -> None:
    assert "'main'" in look("partition: mian")["partition"].advice


def test_drained_nodes_make_the_job_wait_and_it_is_given_up(look: Look, cluster: TestCluster) -> None:
    cluster.run("scontrol", "update", "NodeName=node[2-4]", "State=DRAIN", "Reason=fan broken")
    try:
        begun = time.monotonic()
        found = look(HEALTHY, login_only=False, patience=2.0)
        assert time.monotonic() - begun < 20
    finally:
        cluster.run("scontrol", "update", "NodeName=node[2-4]", "State=RESUME")
    assert found["nodes"].state == "warning"
    assert "1 of 4 nodes" in found["nodes"].found
    assert "fan broken" in found["nodes"].found
    waits = found["node compute nodes"]
    assert waits.state == "not checked"
    assert waits.found.startswith("the job waits for ")
    assert len(waits.found) > len("the job waits for ")


@contextmanager
def blinded(cluster: TestCluster, node: str, runs: Path) -> Iterator[None]:
    """A node which finds another file system in place of the parent of the run folder.

    Where this container may not mount one, what the node would look for is moved away as soon as it is there.
    """
    inside = ["nsenter", "--mount", f"--target={cluster._daemons[node].pid}"]
    if MOUNTS:
        subprocess.run([*inside, "mount", "-t", "tmpfs", "none", str(runs.parent)], check=True, timeout=20)
        yield
        subprocess.run([*inside, "umount", "--lazy", str(runs.parent)], check=True, timeout=20)
        return
    what = ".graft-doctor-*/" + ("nonce" if node == "node1" else "graft_probe/node.py")
    thread = threading.Thread(target=_until, args=(lambda: [path.rename(path.with_suffix(".gone")) for path in runs.glob(what)],))
    thread.start()
    yield
    thread.join()


@pytest.mark.parametrize(("blind", "says"), [("node1", "is not seen"), ("node2", "it is not there")])
def test_a_run_folder_that_a_node_does_not_see(
    look: Look, cluster: TestCluster, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, blind: str, says: str
) -> None:
    monkeypatch.setattr("launcher.doctor.job.MEET", 3.0)
    runs = tmp_path / "shared" / "runs"
    runs.mkdir(parents=True)
    with blinded(cluster, blind, runs):
        found = look(HEALTHY, runs=runs, login_only=False)
    check = found["node compute nodes" if blind == "node1" else "node run folder"]
    assert check.state == "failed"
    assert says in check.found
    if blind == "node2":
        assert found["node between two nodes"].state == "failed"


@pytest.mark.parametrize(("options", "name", "says"), [
    ("size=1m", "writing", "the disk is full"), ("size=1m,ro", "run folder", "the file system is read-only"),
])  # fmt: skip
def test_a_run_folder_without_room(look: Look, tmp_path: Path, options: str, name: str, says: str) -> None:
    small = tmp_path / "small"
    with mounted(small, options) as mine:
        if not mine and name == "writing":
            says = "File too large"
            before = resource.getrlimit(resource.RLIMIT_FSIZE)
            resource.setrlimit(resource.RLIMIT_FSIZE, (10**6, before[1]))
        elif not mine:
            says = "Not a directory"
            small.rmdir()
            small.write_text("")
        try:
            found = look(HEALTHY, runs=small)
        finally:
            if not mine and name == "writing":
                resource.setrlimit(resource.RLIMIT_FSIZE, before)
    assert found[name].state == "failed"
    assert says in found[name].found
    if mine and name == "writing":
        assert found["room"].state == "failed"
        assert found["file system"].found.startswith("tmpfs")


def test_without_slurm(look: Look, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    tools = tmp_path / "bin"
    tools.mkdir()
    for name in ("git", "bash"):
        (tools / name).symlink_to(shutil.which(name) or "")
    with monkeypatch.context() as only:
        only.setenv("PATH", str(tools))
        found = look(HEALTHY, login_only=False)
    assert found["slurm commands"].state == "failed"
    assert "sbatch" in found["slurm commands"].found
    assert found["node compute nodes"].found == "Slurm's commands are missing"


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_nothing_is_left_when_it_is_ended(cluster: TestCluster, tmp_path: Path, number: signal.Signals) -> None:
    (tmp_path / "runs").mkdir()
    command = [sys.executable, "-m", "launcher", "doctor", "--runs", str(tmp_path / "runs")]
    environment = {**cluster.environment, "PYTHONPATH": str(ROOT), "XDG_CONFIG_HOME": str(tmp_path / "none")}
    process = subprocess.Popen(
        command, cwd=tmp_path, env=environment, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, start_new_session=True
    )
    try:
        assert _until(lambda: list(tmp_path.glob("runs/.graft-doctor-*/out")), 40)
        os.kill(process.pid, number)
        process.communicate(timeout=20)
    finally:
        process.kill()
    assert process.returncode not in (0, None)
    assert list((tmp_path / "runs").iterdir()) == []
    assert _until(lambda: not cluster.run("squeue", "-h").stdout)


def test_the_command_says_it_in_json_and_with_its_exit_code(cluster: TestCluster, tmp_path: Path) -> None:
    environment = {**cluster.environment, "PYTHONPATH": str(ROOT), "XDG_CONFIG_HOME": str(tmp_path / "none")}
    command = [sys.executable, "-m", "launcher", "doctor", "--login-only"]

    def run(*more: str) -> subprocess.CompletedProcess[str]:
        return subprocess.run([*command, *more], cwd=tmp_path, env=environment, capture_output=True, text=True, timeout=60)

    good = run("--json")
    assert good.returncode == 0, good.stdout + good.stderr
    checks = json.loads(good.stdout)
    assert {check["state"] for check in checks} <= {"ok", "warning", "not checked"}
    assert set(checks[0]) == {"name", "state", "found", "advice", "place"}
    (tmp_path / "configs/clusters").mkdir(parents=True)
    (tmp_path / "configs/clusters/there.yaml").write_text("partition: nowhere\n")
    bad = run("there")
    assert bad.returncode == 1
    assert "failed       partition                nowhere does not exist" in bad.stdout
    assert "1 failed" in bad.stdout.splitlines()[-1]
    assert "sk-" not in bad.stdout
