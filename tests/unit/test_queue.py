"""What squeue prints becomes jobs; the lines below were printed by Slurm 22.05.8 on the cluster of the tests."""

from __future__ import annotations

import os
import sys
from pathlib import Path

import pytest

from launcher import slurm
from launcher.queue import Queue, expand, parse, seconds
from trainer.config import GraftError

SAID = """\
8|CANCELLED|main|4:00:00|1795467967||JobHeldUser
1|PENDING|main|10:00|1795468568||Resources
3_[2-99,200,205,212,219,226,233,240,247,254,261,268,275,282,289,296%2]|PENDING|main|10:00|N/A||JobArrayTaskLimit
5|PENDING|main|4:00:00|1795471567||BeginTime
6|PENDING|main|4:00:00|N/A||Dependency
7|PENDING|main,urgent|2:00:00|1795469160||Priority
4|PENDING|main|1-04:00:00|N/A||JobHeldUser
2|RUNNING|main|9:56|1795467968|node[1-4]|None
3_0|RUNNING|main|9:56|1795467968|node1|None
9|FAILED|urgent|1:00:00|1795467968|node1|NonZeroExitCode
10|PENDING|main|UNLIMITED|N/A||ReqNodeNotAvail, UnavailableNodes:node[1-2]|(held)
"""


def test_jobs_and_waiting_members_are_found_by_their_id() -> None:
    jobs = parse(SAID)
    members = [f"3_{n}" for n in (*range(2, 100), 200, 205, *range(212, 297, 7))]
    assert set(jobs) == {"8", "1", "5", "6", "7", "4", "2", "9", "10", "3_0", *members}
    assert (jobs["1"].waiting, jobs["1"].active, jobs["1"].start) == (True, False, 1795468568.0)
    assert (jobs["2"].waiting, jobs["2"].active, jobs["2"].left, jobs["2"].nodes) == (False, True, 596, "node[1-4]")
    assert (jobs["3_99"].id, jobs["3_99"].waiting, jobs["3_99"].start) == ("3_99", True, None)
    assert not jobs["8"].waiting
    assert not jobs["9"].active
    assert jobs["10"].reason == "ReqNodeNotAvail, UnavailableNodes:node[1-2]|(held)"


def test_lines_that_are_no_jobs_are_passed_over() -> None:
    evil = 'a|b $(x);"q"\n evil|PENDING\n||||||\n-1|RUNNING|p|1:00|N/A||None\nx_[1]|PENDING|p|1:00|N/A||None\n'
    assert parse(evil) == {}
    assert parse("12|RUNNING|p|1:00|soon|n1|a\x1b[2Jb\n")["12"].reason == "a [2Jb"


@pytest.mark.parametrize(("ids", "members"), [
    ("120", ["120"]),
    ("120_3", ["120_3"]),
    ("120_[4-9%2]", [f"120_{n}" for n in range(4, 10)]),
    ("120_[0,4-8:2%1]", ["120_0", "120_4", "120_6", "120_8"]),
    ("120_[7]", ["120_7"]),
    ("120_[2-4,...]", ["120_2", "120_3", "120_4"]),
    ("120+0", []),
    ("", []),
    ("$(id)", []),
])  # fmt: skip
def test_arrays_are_expanded(ids: str, members: list[str]) -> None:
    assert list(expand(ids)) == members


@pytest.mark.parametrize(("text", "value"), [
    ("1-04:00:00", 100_800), ("4:00:00", 14_400), ("9:56", 596), ("0:07", 7), ("UNLIMITED", None), ("INVALID", None), ("", None),
])  # fmt: skip
def test_time_limits_become_seconds(text: str, value: int | None) -> None:
    assert seconds(text) == value


@pytest.mark.parametrize(("reason", "words"), [
    ("Resources", "waits for nodes that are busy"),
    ("Priority", "jobs with a higher priority"),
    ("BeginTime", "its time has not come yet"),
    ("Dependency", "waits for another job"),
    ("JobHeldUser", "scontrol release 5"),
    ("ReqNodeNotAvail, UnavailableNodes:node[1-2]", "down, drained or reserved (ReqNodeNotAvail, UnavailableNodes:node[1-2])"),
    ("QOSMaxJobsPerUserLimit", "a limit of its QOS is reached (QOSMaxJobsPerUserLimit)"),
    ("AssocGrpGRESMinutes", "a limit of your account is reached"),
    ("SomethingNew", "SomethingNew"),
    ("", "no reason given"),
])  # fmt: skip
def test_a_reason_is_told_in_words_with_slurms_own_behind(reason: str, words: str) -> None:
    assert words in parse(f"5|PENDING|main|1:00|N/A||{reason}\n")["5"].why()


def tool(folder: Path, name: str, body: str) -> None:
    """A command of that name, in Python."""
    path = folder / name
    path.write_text(f"#!{sys.executable}\nimport os, sys, time\n{body}\n")
    path.chmod(0o755)


def test_a_queue_that_is_slow_silent_or_absurd_costs_nothing_but_its_answer(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    queue = Queue()
    queue.look()
    assert "squeue is not on this machine" in queue.problem
    tool(tmp_path, "squeue", "print('7|RUNNING|main|1:00|5|node1|None')")
    queue.look()
    assert (queue.problem, queue.jobs["7"].nodes) == ("", "node1")
    tool(tmp_path, "squeue", "sys.exit('slurm_load_jobs error: Unable to contact slurm controller (connect failure)')")
    queue.look()
    assert "Unable to contact slurm controller" in queue.problem
    assert queue.jobs["7"].active, "what was known stays known"
    tool(tmp_path, "squeue", "sys.stdout.buffer.write(bytes(range(256)) * 99)")
    queue.look()
    assert queue.problem == "squeue printed what is no text"
    tool(tmp_path, "squeue", "print('something else: |' * 99)")
    queue.look()
    assert (queue.problem, queue.jobs) == ("", {})
    tool(tmp_path, "squeue", "time.sleep(60)")
    with pytest.raises(GraftError, match="did not answer"):
        slurm.command("squeue", timeout=0.5)


def test_the_users_own_settings_of_squeue_change_nothing_and_the_queue_is_asked_seldom(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    monkeypatch.setenv("SQUEUE_PARTITION", "other")
    monkeypatch.setenv("SLURM_TIME_FORMAT", "relative")
    body = f"assert 'SQUEUE_PARTITION' not in os.environ and '--user={os.getuid()}' in sys.argv\n"
    tool(tmp_path, "squeue", body + "print('7|PENDING|main|1:00|' + '5' * (os.environ['SLURM_TIME_FORMAT'] == '%s') + '||None')")
    queue = Queue(every=60)
    queue.look()
    assert queue.jobs["7"].start == 5.0
    queue.look()
    assert (queue.asked, queue.problem) == (1, "")


def test_accounts_tell_how_a_job_ended_where_a_site_keeps_them(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    queue = Queue()
    assert queue.ended(["1"]) == {}, "no sacct here"
    tool(tmp_path, "sacct", "print('2|CANCELLED by 1000\\n3|TIMEOUT\\n4_[0-2%1]|PENDING\\n4_3|OUT_OF_MEMORY\\n9|')")
    assert queue.ended(["2", "3", "4_1", "4_3", "9", "1"]) == {
        "2": "CANCELLED",
        "3": "TIMEOUT",
        "4_1": "PENDING",
        "4_3": "OUT_OF_MEMORY",
    }
    tool(tmp_path, "sacct", "sys.exit('Slurm accounting storage is disabled')")
    assert Queue().ended(["2"]) == {}
    assert queue.ended(["2"]) == {"2": "CANCELLED"}
