"""What becomes of a Slurm job: the decision from the run folder alone, and a start from the job script's point of view."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from launcher.job import Verdict, begin, end, judge
from tests.trainers import ROOT, run_file
from trainer.config import EXIT_FAULT, EXIT_REFUSED, EXIT_REQUEUE, EXIT_USER, GraftError, UserError
from trainer.rundir import RunDir, read_points


@pytest.fixture
def folder(tmp_path: Path) -> RunDir:
    rundir = RunDir(tmp_path / "run")
    rundir.create()
    return rundir


def verdict(rundir: RunDir, **given: Any) -> Verdict:
    facts = {"status": 0, "state": "RUNNING", "limit": 100, "step": 10, "restart": 0, "events": [], "bad": []}
    return judge(rundir, **{**facts, **given})


def crash(step: int) -> dict[str, Any]:
    return {"event": "end", "verdict": "requeue", "crash": True, "step": step}


def test_a_run_that_was_stopped_is_queued_again(folder: RunDir) -> None:
    folder.mark("REQUEUE", "stopped by SIGUSR1", EXIT_REQUEUE, 10)
    found = verdict(folder)
    assert (found.verdict, found.exclude) == ("requeue", ())
    assert "stopped by SIGUSR1" in found.reason
    assert "step 10" in found.reason


def test_done_is_done_whatever_slurm_does(folder: RunDir) -> None:
    folder.mark("DONE", "40 steps", 0, 40)
    for state in ("RUNNING", "COMPLETING"):
        assert (verdict(folder, state=state).verdict, verdict(folder, state=state).code) == ("done", 0)


@pytest.mark.parametrize("state", ["COMPLETING", "CANCELLED", "REQUEUED", "unknown"])
def test_a_job_that_slurm_ends_is_left_alone(folder: RunDir, state: str) -> None:
    folder.mark("REQUEUE", "stopped by SIGTERM", EXIT_REQUEUE, 10)
    assert verdict(folder, state=state).verdict == "cancelled"


def test_a_job_whose_time_is_over_is_queued_again_unless_that_repeats(folder: RunDir) -> None:
    assert verdict(folder, state="TIMEOUT", status=143).verdict == "requeue"
    assert verdict(folder, state="TIMEOUT", status=143, events=[crash(10), crash(10)]).verdict == "stop"
    folder.mark("REQUEUE", "stopped by SIGTERM", EXIT_REQUEUE, 10)
    assert verdict(folder, state="TIMEOUT").verdict == "requeue"


@pytest.mark.parametrize("code", [EXIT_USER, EXIT_REFUSED])
def test_a_mistake_is_not_tried_again(folder: RunDir, code: int) -> None:
    folder.mark("FAILED", "no such file", code, 0)
    found = verdict(folder)
    assert (found.verdict, found.code) == ("stop", code)
    assert "no such file" in found.reason


def test_the_limit(folder: RunDir) -> None:
    folder.mark("REQUEUE", "stopped by SIGUSR1", EXIT_REQUEUE, 10)
    assert verdict(folder, restart=4, limit=5).verdict == "requeue"
    assert verdict(folder, restart=5, limit=5).verdict == "stop"
    assert verdict(folder, restart=0, limit=0).verdict == "stop"


def test_crashes_without_a_new_checkpoint(folder: RunDir) -> None:
    folder.mark("FAILED", "bad things", EXIT_FAULT, 12)
    assert verdict(folder, events=[crash(10)]).verdict == "requeue"
    assert verdict(folder, events=[crash(5), crash(10), crash(10)]).verdict == "stop"
    assert verdict(folder, events=[crash(10), crash(10), crash(5)]).verdict == "requeue"
    stopped = {**crash(10), "crash": False}  # a preemption in between shows that a start can succeed
    assert verdict(folder, events=[crash(10), stopped, crash(10)]).verdict == "requeue"


def test_killed_without_a_word_is_a_crash_that_names_its_rank(folder: RunDir) -> None:
    (folder.logs / "failure-1.json").write_text(json.dumps({"rank": 3, "code": -9, "node": "node2"}))
    found = verdict(folder, status=137)
    assert found.verdict == "requeue"
    assert "rank 3 on node2 was killed by SIGKILL" in found.reason
    assert verdict(folder, status=137, events=[crash(10), crash(10)]).verdict == "stop"


def test_a_bad_node_is_no_crash_of_the_run(folder: RunDir) -> None:
    bad = [{"node": "n7", "problem": "GPU 3 multiplies wrongly", "job": "1", "restart": 2},
           {"node": "n4", "problem": "gone", "job": "1", "restart": 1}]  # fmt: skip
    found = verdict(folder, status=76, restart=2, bad=bad, events=[crash(10), crash(10)])
    assert (found.verdict, found.exclude) == ("requeue", ("n4", "n7"))
    assert "n7: GPU 3 multiplies wrongly" in found.reason
    assert "gone" not in found.reason


def test_a_bad_node_neither_counts_nor_hides_crashes(folder: RunDir, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SLURM_JOB_ID", "1")
    for restart, bad, verdict in ((0, True, "requeue"), (1, True, "requeue"), (2, False, "requeue"), (3, True, "requeue"),
                                  (4, False, "requeue"), (5, False, "stop")):  # fmt: skip
        monkeypatch.setenv("SLURM_RESTART_COUNT", str(restart))
        if bad:
            with folder.bad_nodes.open("a") as file:
                file.write(json.dumps({"node": f"n{restart}", "problem": "gone", "job": "1", "restart": restart}) + "\n")
        assert end(folder, status=1, state="RUNNING", limit=100).verdict == verdict, restart


def test_bad_nodes_without_an_end_are_given_up(folder: RunDir) -> None:
    """A check that is wrong itself must not take a cluster apart, node by node."""
    bad = [{"node": "n7", "problem": "gone", "job": "1", "restart": 9}]
    before = [{"event": "end", "verdict": "requeue", "crash": None, "step": 10}] * 9
    assert verdict(folder, restart=9, bad=bad, events=before[1:]).verdict == "requeue"
    found = verdict(folder, restart=9, bad=bad, events=before)
    assert found.verdict == "stop"
    assert "10 starts in a row" in found.reason
    assert verdict(folder, restart=9, bad=bad, events=[*before, crash(10)]).verdict == "requeue"


def test_begin_tells_the_script_what_to_start(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SLURM_JOB_ID", "77")
    monkeypatch.setenv("SLURM_RESTART_COUNT", "2")
    monkeypatch.setenv("GRAFT_NODES", "a1,a2")
    file = run_file(tmp_path, parallel={"device": "cpu", "processes": 2, "threads": 3})
    lines = begin(str(file), ["train.seed=5"], tmp_path / "runs", accept_changes=False)
    rundir = RunDir(tmp_path / "runs" / "run")
    assert lines == [str(rundir.path), "2", "3", "0"]
    assert rundir.load().train.seed == 5
    job = rundir.read_json(rundir.job)
    assert (job["id"], job["restart"], job["nodes"]) == ("77", 2, ["a1", "a2"])
    assert [e["event"] for e in read_points(rundir.jobs)] == ["begin"]


def test_begin_needs_the_gpus_that_slurm_granted(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A node whose driver is gone must not train on its CPU."""
    monkeypatch.setenv("SLURM_GPUS_ON_NODE", "4")
    file = run_file(tmp_path, parallel={"device": "auto"})
    assert begin(str(file), [], tmp_path / "runs", accept_changes=False)[1:] == ["4", "1", "4"]


def test_begin_leaves_a_run_that_is_done(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    file = run_file(tmp_path, parallel={"device": "cpu"})
    begin(str(file), [], tmp_path, accept_changes=False)
    RunDir(tmp_path / "run").mark("DONE", "40 steps", 0, 40)
    assert begin(str(file), [], tmp_path, accept_changes=False)[1] == "0"
    assert "done already" in capsys.readouterr().err


def test_a_folder_that_cannot_be_told_in_a_line_is_refused(tmp_path: Path) -> None:
    file = run_file(tmp_path)
    with pytest.raises(UserError, match="printable"):
        begin(str(file), [], tmp_path / "ru\nns", accept_changes=False)
    assert not (tmp_path / "ru\nns").exists()


def test_a_later_start_of_the_job_takes_over_and_another_job_does_not(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The holder lives: slurmd of its node died, and Slurm queued the job again."""
    monkeypatch.setenv("SLURM_JOB_ID", "77")
    file = run_file(tmp_path, parallel={"device": "cpu"})
    begin(str(file), [], tmp_path, accept_changes=False)
    hold = "import sys, pathlib, trainer.rundir as r; r.Lease(pathlib.Path(sys.argv[1])); print(1, flush=True); input()"
    words = [sys.executable, "-c", hold, str(tmp_path / "run" / "lease.json")]
    holder = subprocess.Popen(words, cwd=ROOT, stdin=subprocess.PIPE, stdout=subprocess.PIPE)
    assert holder.stdout is not None
    holder.stdout.readline()
    try:
        for job, restart in (("78", "1"), ("77", "0")):
            monkeypatch.setenv("SLURM_JOB_ID", job)
            monkeypatch.setenv("SLURM_RESTART_COUNT", restart)
            with pytest.raises(GraftError, match=f"process {holder.pid}"):
                begin(str(file), [], tmp_path, accept_changes=False)
        monkeypatch.setenv("SLURM_RESTART_COUNT", "1")
        begin(str(file), [], tmp_path, accept_changes=False)
    finally:
        holder.kill()
        holder.communicate()


def test_what_an_older_job_met_does_not_count(folder: RunDir, monkeypatch: pytest.MonkeyPatch) -> None:
    folder.mark("FAILED", "bad things", EXIT_FAULT, 0)
    folder.jobs.write_text("".join(json.dumps({**crash(0), "job": "76"}) + "\n" for _ in range(2)))
    monkeypatch.setenv("SLURM_JOB_ID", "77")
    assert end(folder, status=1, state="RUNNING", limit=100).verdict == "requeue"
    monkeypatch.setenv("SLURM_JOB_ID", "76")
    assert end(folder, status=1, state="RUNNING", limit=100).verdict == "stop"


def test_a_failure_that_an_older_start_left_is_not_this_one(folder: RunDir) -> None:
    """Its slurmd died; it lost the folder to this start, and said so with an exit code that would end the job."""
    (folder.logs / "failure-0.json").write_text(json.dumps({"rank": 0, "code": EXIT_REFUSED, "node": "n1", "restart": 1}))
    assert verdict(folder, restart=1).verdict == "stop"
    found = verdict(folder, status=137, restart=2)
    assert found.verdict == "requeue"
    assert "a process of the job was killed" in found.reason


def test_a_torn_line_takes_no_other_with_it(folder: RunDir, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SLURM_JOB_ID", "77")
    folder.jobs.write_bytes(b'{"event": "end", "reason": "caf\xc3')
    folder.mark("REQUEUE", "stopped by SIGUSR1", EXIT_REQUEUE, 10)
    end(folder, status=0, state="RUNNING", limit=100)
    assert [e["verdict"] for e in read_points(folder.jobs)] == ["requeue"]


def test_a_decision_that_cannot_be_noted_stands(tmp_path: Path, folder: RunDir) -> None:
    folder.mark("REQUEUE", "stopped by SIGUSR1", EXIT_REQUEUE, 10)
    folder.jobs.symlink_to(tmp_path / "gone" / "jobs.jsonl")  # as unwritable as a full disk, for root too
    words = [sys.executable, "-m", "launcher.job", "end", str(folder.path), "--status=0", "--state=RUNNING", "--limit=9"]
    done = subprocess.run(words, cwd=ROOT, capture_output=True, text=True, timeout=60, check=False)
    assert done.stdout.splitlines()[:2] == ["requeue", str(EXIT_REQUEUE)]
    assert "Traceback" not in done.stderr
    assert "not noted" in done.stderr


def test_a_folder_that_cannot_be_written_is_said_without_a_traceback(tmp_path: Path) -> None:
    file = run_file(tmp_path, parallel={"device": "cpu"})
    (tmp_path / "runs" / "run" / "jobs.jsonl").mkdir(parents=True)
    words = [sys.executable, "-m", "launcher.job", "begin", str(file), f"--runs={tmp_path / 'runs'}"]
    done = subprocess.run(words, cwd=ROOT, capture_output=True, text=True, timeout=60, check=False)
    assert done.returncode == EXIT_FAULT
    assert "jobs.jsonl: Is a directory" in done.stderr
    assert "Traceback" not in done.stderr


def test_a_full_disk_is_no_fault_of_the_nodes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Found by the check of the nodes, it would cost the job one node after the other."""
    monkeypatch.setattr("launcher.job.LEAST_DISK", 1 << 62)
    with pytest.raises(GraftError, match="make room"):
        begin(str(run_file(tmp_path)), [], tmp_path, accept_changes=False)


def test_a_member_of_a_sweep_keeps_the_script_of_its_array(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("GRAFT_SCRIPT", "/somewhere/train.sbatch")
    file = run_file(tmp_path, parallel={"device": "cpu"})
    begin(str(file), [], tmp_path, accept_changes=False)
    rundir = RunDir(tmp_path / "run")
    assert rundir.read_json(rundir.job)["script"] == "/somewhere/train.sbatch"
