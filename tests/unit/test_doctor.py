"""What the doctor measures and how it judges; on a real Slurm in tests/cluster/test_doctor.py."""

from __future__ import annotations

import errno
import fcntl
import os
import shlex
import socket
import subprocess
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from launcher.cluster import Cluster
from launcher.doctor import folder, partition
from launcher.doctor.check import Check, size
from launcher.doctor.job import Outcome, arguments, script
from launcher.doctor.login import configuration, judge_versions
from launcher.doctor.nodes import judge
from launcher.probe import files, network, pair
from launcher.probe.node import address_of, versions

HERE = versions()


def by_name(checks: Iterator[Check]) -> dict[str, Check]:
    return {check.name: check for check in checks}


# ---- the file system


def test_the_mount_of_a_path_is_the_longest_that_holds_it(tmp_path: Path) -> None:
    table = tmp_path / "mounts"
    spaced = tmp_path / "my data"
    spaced.mkdir()
    written = str(spaced).replace(" ", r"\040")
    table.write_text(f"/dev/vda / ext4 rw 0 0\nserver:/x {tmp_path} nfs4 rw 0 0\nnone {written} tmpfs rw 0 0\n")
    assert files.mount(tmp_path / "runs", table) == files.Mount("nfs4", str(tmp_path), "rw")
    assert files.mount(spaced / "runs", table).in_memory
    assert files.mount(Path("/nothing"), table).kind == "ext4"
    assert files.mount(Path(f"{tmp_path}-beside"), table).kind == "ext4"
    assert files.mount(tmp_path, table).served
    assert not files.mount(Path("/"), table).served


def test_a_healthy_folder(tmp_path: Path) -> None:
    found = by_name(folder.check_folder(tmp_path))
    assert {found[name].state for name in ("locks", "renames", "small files", "clock")} == {"ok"}
    assert list(tmp_path.iterdir()) == []


def test_locks_that_let_two_in_are_found(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(fcntl, "flock", lambda handle, how: None)
    check = by_name(folder.check_folder(tmp_path))["locks"]
    assert check.state == "failed"
    assert "two holders" in check.found


def test_a_file_system_without_locks_is_found(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(handle: int, how: int) -> None:
        raise OSError(errno.ENOSYS, os.strerror(errno.ENOSYS))

    monkeypatch.setattr(fcntl, "flock", refuse)
    check = by_name(folder.check_folder(tmp_path))["locks"]
    assert check.state == "failed"
    assert "Function not implemented" in check.found
    assert "-o flock" in check.advice
    assert list(tmp_path.iterdir()) == []


def test_a_held_lock_is_refused_and_given_once_it_is_free(tmp_path: Path) -> None:
    first = files.lock(tmp_path / "lock")
    assert first is not None
    assert files.lock(tmp_path / "lock") is None
    files.unlock(first)
    again = files.lock(tmp_path / "lock")
    assert again is not None
    files.unlock(again)


def test_two_nodes_lock_and_rename(tmp_path: Path) -> None:
    """Both sides, as two threads: locks belong to the opened file, so they exclude each other as two hosts would."""
    found: dict[tuple[str, int], dict[str, Any]] = {}

    def side(rank: int) -> None:
        found["locks", rank] = pair.locks(tmp_path, rank)
        found["rename", rank] = pair.rename(tmp_path, rank)

    threads = [threading.Thread(target=side, args=(rank,)) for rank in (0, 1)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(timeout=30)
    assert found["locks", 0] == {}
    assert found["locks", 1] == {"excludes": True}
    assert found["rename", 1]["seconds"] < 5
    assert found["rename", 1]["torn"] == []


def test_locks_that_hold_on_one_node_only_are_found(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(fcntl, "flock", lambda handle, how: None)
    found: dict[int, dict[str, Any]] = {}
    threads = [threading.Thread(target=lambda rank=rank: found.update({rank: pair.locks(tmp_path, rank)})) for rank in (0, 1)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(timeout=30)
    assert found[1] == {"excludes": False}
    check = by_name(judge(outcome(locks=found), Cluster(), 0.0))["locks between nodes"]
    assert check.state == "failed"
    assert "given to the other too" in check.found


def test_a_clock_that_differs_from_the_file_servers(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert files.ahead(tmp_path) == 0.0
    now = time.time
    monkeypatch.setattr(time, "time", lambda: now() - 60)
    assert files.ahead(tmp_path) == pytest.approx(60, abs=2)


def test_a_slow_disk_is_warned_of() -> None:
    check = folder.speed_check("writing", 8.0)
    assert check.state == "warning"
    assert check.found == "8 MB/s: 1 GB of checkpoint takes 125.0 s"


# ---- the network


@pytest.fixture
def no_proxy(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("http_proxy", "https_proxy", "all_proxy", "no_proxy"):
        monkeypatch.delenv(name, raising=False)
        monkeypatch.delenv(name.upper(), raising=False)


@pytest.mark.usefixtures("no_proxy")
def test_servers_are_reached_refused_and_silent() -> None:
    with socket.create_server(("127.0.0.1", 0)) as server:
        port = server.getsockname()[1]
        assert network.reach(f"http://127.0.0.1:{port}") == ""
        assert network.reach(f"https://127.0.0.1:{port}", 0.5) == "no answer within 0 s"  # speaks no TLS, says nothing
    assert network.reach(f"http://127.0.0.1:{port}") == "Connection refused"
    assert "not an address" in network.reach("gopher://127.0.0.1")


@pytest.mark.usefixtures("no_proxy")
def test_a_proxy_is_used_with_its_password_and_the_password_is_not_shown(monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[str] = []
    with socket.create_server(("127.0.0.1", 0)) as server:

        def proxy() -> None:
            client, _ = server.accept()
            with client:
                asked.append(client.recv(4096).decode())
                client.sendall(b"HTTP/1.1 403 Forbidden\r\n\r\n")

        thread = threading.Thread(target=proxy)
        thread.start()
        monkeypatch.setenv("https_proxy", f"http://me:geheim@127.0.0.1:{server.getsockname()[1]}")
        said = network.reach("https://api.wandb.example")
        thread.join(timeout=10)
    assert asked[0].startswith("CONNECT api.wandb.example:443")
    assert "Proxy-Authorization: Basic bWU6Z2VoZWlt" in asked[0]
    assert "403" in said
    assert "geheim" not in said


def test_a_key_is_found_and_never_shown(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    secret = "0123456789abcdef" * 2
    file = tmp_path / ".netrc"
    monkeypatch.setenv("NETRC", str(file))
    monkeypatch.delenv("WANDB_API_KEY", raising=False)
    monkeypatch.setenv("WANDB_BASE_URL", "http://127.0.0.1:1")
    monkeypatch.setenv("HF_ENDPOINT", "http://127.0.0.1:1")
    monkeypatch.setenv("https_proxy", "http://127.0.0.1:1")

    def said() -> Check:
        checks = list(folder.check_network())
        assert secret not in repr(checks)
        return checks[-1]

    assert said().found == "none for 127.0.0.1:1"
    monkeypatch.setenv("WANDB_API_KEY", secret)
    assert "jobs do not get" in said().found
    file.write_text(f"machine 127.0.0.1 login user password {secret}\n")
    file.chmod(0o600)
    assert said().state == "ok"
    monkeypatch.delenv("WANDB_API_KEY")
    file.write_text(f"machin 127.0.0.1 password {secret}\n")
    assert said().found == "~/.netrc cannot be read"


def test_an_interface_has_an_address_or_not() -> None:
    assert address_of("lo") == "127.0.0.1"
    assert address_of("ib7") == address_of("") == ""


# ---- Slurm's words


@pytest.mark.parametrize(("text", "expected"), [
    ("1-00:00:00", 86400), ("04:00:00", 14400), ("30:00", 1800), ("90", 5400), ("2-12", 216000), ("UNLIMITED", None),
    ("NONE", None),
])  # fmt: skip
def test_times_of_slurm(text: str, expected: int | None) -> None:
    assert partition.seconds(text) == expected


@pytest.mark.parametrize(("said", "state", "words"), [
    ({"PreemptMode": "REQUEUE", "GraceTime": "0"}, "warning", "killed without warning"),
    ({"PreemptMode": "CANCEL", "GraceTime": "0"}, "warning", "not queued again"),
    ({"PreemptMode": "CANCEL", "GraceTime": "60"}, "ok", "60 s to save"),
    ({"PreemptMode": "OFF"}, "ok", "not preempted"),
])  # fmt: skip
def test_preemption_without_grace_is_warned_of(said: dict[str, str], state: str, words: str) -> None:
    known = {"main": {"State": "UP", "MaxTime": "1:00:00", **said}}
    config = {"PreemptType": "preempt/partition_prio"}
    check = by_name(partition.check_partition(Cluster(partition="main"), known, config))["preemption"]
    assert check.state == state
    assert words in check.found


def test_a_partition_that_is_down_or_missing() -> None:
    down = {"main": {"State": "DOWN", "MaxTime": "1:00:00"}}
    assert by_name(partition.check_partition(Cluster(partition="main"), down, {}))["partition"].state == "failed"
    assert "no default" in by_name(partition.check_partition(Cluster(), down, {}))["partition"].found


@pytest.mark.parametrize(("state", "usable"), [
    ("IDLE", True), ("MIXED", True), ("ALLOCATED", True), ("IDLE+CLOUD+POWERED_DOWN", False), ("IDLE+DRAIN", False),
    ("DOWN*", False), ("MIXED*", False), ("IDLE+MAINT", False),
])  # fmt: skip
def test_which_nodes_take_jobs(state: str, usable: bool) -> None:
    assert partition.Node("n", state, {}, frozenset(), "").usable is usable


def test_slurm_settings_that_matter() -> None:
    found = by_name(configuration({"JobRequeue": "0", "KillWait": "3 sec", "MaxArraySize": "1"}))
    assert found["requeue"].state == "ok"
    assert "asks for it itself" in found["requeue"].found
    assert found["time to save"].state == found["sweeps"].state == "warning"


# ---- the interpreter


def test_versions_that_differ_and_packages_that_are_missing() -> None:
    there = {**HERE, "torch": "1.0"}
    check = judge_versions("python", "/opt/python", there, HERE)
    assert (check.state, "torch 1.0 (here" in check.found) == ("warning", True)
    without = {name: number for name, number in HERE.items() if name not in ("torch", "graft-trainer")}
    missing = judge_versions("python", "/opt/python", without, HERE)
    assert missing.state == "failed"
    assert missing.found.endswith("missing: torch")
    assert judge_versions("python", "/opt/python", {**HERE, "python": "3.9.2"}, HERE).state == "failed"


# ---- what the nodes say


def outcome(**facts: dict[int, dict[str, Any]]) -> Outcome:
    """Two healthy nodes, with some facts replaced."""
    healthy: dict[str, dict[str, Any]] = {
        "python": {"executable": "/py", "versions": HERE}, "folder": {"kind": "nfs4", "served": True, "locks": True},
        "limits": {"files": 65536, "memlock": None}, "slurm": {"missing": "", "refused": ""}, "meet": {"seconds": 0.1},
        "locks": {"excludes": True}, "rename": {"seconds": 0.1, "torn": []}, "write": {"speed": 900.0}, "clock": {"ahead": 0.0},
        "gpus": {"cuda": 2, "torch": "2", "names": ["H100"], "free": 80e9, "total": 80e9, "driver": "550"},
        "gloo": {"speed": 1000.0, "apart": 0.0}, "nccl": {"speed": 9000.0, "apart": 0.0}, "end": {},
    }  # fmt: skip
    both = {name: {0: dict(fact), 1: dict(fact)} for name, fact in healthy.items()}
    return Outcome(2, names={0: "a", 1: "b"}, facts={**both, **facts}, state="COMPLETED", answered=2)


SITE = Cluster(gpus_per_node=2, network=False)


def test_healthy_nodes_are_ok() -> None:
    assert {check.state for check in judge(outcome(), SITE, 0.0)} == {"ok"}


@pytest.mark.parametrize(("fact", "second", "name", "state", "says"), [
    ("gpus", {"cuda": 1, "torch": "2", "names": ["H100"], "free": 80e9, "total": 80e9}, "GPUs", "failed", "b: torch 2 sees 1"),
    ("gpus", {"cuda": 2, "torch": "2", "names": ["H100"], "free": 9e9, "total": 80e9}, "GPUs", "warning", "9.0 GB of 80.0 GB"),
    ("gpus", {"error": "ImportError: libcudart"}, "GPUs", "failed", "libcudart"),
    ("rename", {"seconds": 14.0, "torn": []}, "renames between nodes", "warning", "after 14.0 s"),
    ("rename", {"seconds": None, "torn": []}, "renames between nodes", "failed", "30 s"),
    ("rename", {"seconds": 1.0, "torn": [""]}, "renames between nodes", "failed", "half"),
    ("meet", {"seconds": None}, "between two nodes", "failed", "does not see"),
    ("gloo", {"error": "connection refused"}, "gloo between nodes", "failed", "connection refused"),
    ("nccl", {"speed": 90.0, "apart": 0.0}, "nccl between nodes", "warning", "90 MB/s"),
    ("gloo", {"speed": 900.0, "apart": 8.0}, "clock", "warning", "8.0 s from the other node"),
    ("clock", {"ahead": 30.0}, "clock", "warning", "30.0 s from the login node"),
    ("limits", {"files": 1024, "memlock": None}, "limits", "warning", "1,024 open files"),
    ("limits", {"files": 65536, "memlock": 65536}, "limits", "warning", "65.5 kB locked"),
    ("write", {"speed": 7.0}, "writing", "warning", "7 MB/s"),
    ("write", {"error": "OSError: full"}, "writing", "failed", "full"),
    ("folder", {"error": "it is not there"}, "run folder", "failed", "b: it is not there"),
])  # fmt: skip
def test_what_one_node_lacks_is_found(fact: str, second: dict[str, Any], name: str, state: str, says: str) -> None:
    healthy = outcome()
    found = list(judge(outcome(**{fact: {0: healthy.facts[fact][0], 1: second}}), SITE, 0.0))
    bad = [check for check in found if check.state in ("warning", "failed") and check.name == name]
    assert [check.state for check in bad] == [state]
    assert says in bad[0].found
    assert bad[0].advice


def test_a_controller_that_nodes_do_not_reach() -> None:
    found = by_name(judge(outcome(slurm={0: {"missing": "", "refused": "Unable to contact slurm controller"}}), SITE, 0.0))
    assert found["requeue from a node"].state == "failed"
    found = by_name(judge(outcome(slurm={0: {"missing": "scontrol", "refused": ""}}), SITE, 0.0))
    assert "not on PATH there: scontrol" in found["requeue from a node"].found


def test_files_of_the_nodes_that_the_login_node_does_not_see() -> None:
    blind = outcome()
    blind.answered = 0
    found = [check for check in judge(blind, SITE, 0.0) if check.name == "run folder"]
    assert [check.state for check in found] == ["ok", "failed"]


def test_a_node_that_hangs_is_told_with_what_it_did_find() -> None:
    hung = outcome()
    hung.state = "HUNG"
    for name in ("end", "gloo", "nccl"):
        del hung.facts[name]
    found = by_name(check for check in judge(hung, SITE, 0.0) if check.state == "failed")
    assert set(found) == {"compute nodes", "gloo between nodes"}
    assert "hung" in found["gloo between nodes"].found


@pytest.mark.parametrize(
    ("state", "advice"), [("OUT_OF_MEMORY", "`memory`"), ("NODE_FAIL", "administrators"), ("FAILED", "`python`")]
)
def test_a_job_that_dies(state: str, advice: str) -> None:
    checks = list(judge(Outcome(2, state=state, code=1, where="a", errors="boom"), SITE, 0.0))
    assert [check.state for check in checks] == ["failed"]
    assert "boom" in checks[0].found
    assert advice in checks[0].advice


# ---- the job's script

HOSTILE = '/runs/it\'s $(touch x) `id`; "a" -n\\'


def test_the_script_is_clean_and_quotes_everything(tmp_path: Path) -> None:
    cluster = Cluster(
        python="/opt/my env/bin/python", site="/site's/$(id).sh", modules=["cuda/12"], environment={"A": "$(touch y) 'b'"},
        interface="ib0", scratch="/scratch/my own",
    )  # fmt: skip
    text = script(cluster, Path(HOSTILE), 2, "nonce")
    file = tmp_path / "job"
    file.write_text(text)
    # Not: what stands in single quotes looks like something to expand. That is the point.
    subprocess.run(["shellcheck", "--exclude=SC1003,SC2016", str(file)], check=True, timeout=60)
    settings = text.partition("if [[ ! -r")[0]
    shown = subprocess.run(
        ["bash", "-c", settings + 'printf "%s\\n" "$FOLDER" "$PYTHON" "$SITE" "${MODULES[@]}" "${ENVIRONMENT[@]}" "$INTERFACE"'],
        cwd=tmp_path, capture_output=True, text=True, check=True, timeout=20,
    ).stdout  # fmt: skip
    assert shown.splitlines() == [HOSTILE, "/opt/my env/bin/python", "/site's/$(id).sh", "cuda/12", "A=$(touch y) 'b'", "ib0"]
    assert [path.name for path in tmp_path.iterdir()] == ["job"]


def test_what_sbatch_is_given() -> None:
    cluster = Cluster(partition="gpu", account="me", gpus_per_node=8, gpu_type="h100", cpus_per_gpu=6, options=["--exclusive"])
    assert shlex.join(arguments(cluster, 2)) == (
        "--partition=gpu --account=me --nodes=2 --ntasks-per-node=1 --gpus-per-node=h100:8 --cpus-per-task=48 --exclusive"
    )


@pytest.mark.parametrize("kind", ["apptainer", "enroot", "pyxis"])
def test_the_nodes_are_looked_at_inside_the_container(kind: str) -> None:
    cluster = Cluster.model_validate({"container": {"kind": kind, "image": "img.sif", "mounts": ["/data"]}})
    lines = script(cluster, Path("/runs"), 1, "nonce").splitlines()
    assert "PYTHON=python3" in lines
    words = next(line for line in lines if line.startswith("SRUN=(" if kind == "pyxis" else "CONTAINER=("))
    assert "img.sif" in words
    assert "/data" in words


def test_sizes_for_people() -> None:
    assert [size(n) for n in (12, 1500, 2.5e9, 80e12)] == ["12 B", "1.5 kB", "2.5 GB", "80.0 TB"]
