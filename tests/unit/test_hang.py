"""Who is to blame, by what the ranks left; and how long a save may take."""

from __future__ import annotations

import contextlib
import time
from pathlib import Path

import pytest

from trainer.hang import SAVING, Hang, blame, stack_file
from trainer.rundir import RunDir
from trainer.stacks import innermost, shown, waits
from trainer.straggler import Stragglers
from trainer.watch import Heartbeat, read_ranks

TORCH = "/site-packages/torch"
IN_ENGINE = f"""Thread 0x00007f0000000002 (most recent call first):
  File "/x/trainer/watch.py", line 70 in _keep

Thread 0x00007f0000000001 (most recent call first):
  File "{TORCH}/autograd/graph.py", line 800 in _engine_run_backward
  File "{TORCH}/autograd/__init__.py", line 300 in backward
  File "/x/trainer/loop.py", line 190 in step
"""
IN_OWN_BACKWARD = f"""Thread 0x00007f0000000003 (most recent call first):
  File "/home/me/nets/gan.py", line 12 in backward
  File "{TORCH}/autograd/function.py", line 300 in apply

{IN_ENGINE}"""
MAIN = 0x00007F0000000001


@pytest.fixture
def ranks(tmp_path: Path) -> dict[int, Heartbeat]:
    """The heartbeats of two ranks, both kept by this process and beating no more."""
    hearts = {rank: Heartbeat(tmp_path, rank) for rank in (0, 1)}
    for heart in hearts.values():
        heart._stop.set()
        heart._thread.join()
    return hearts


@pytest.mark.parametrize(
    ("behind", "ahead"),
    [
        ((4, "optimizer"), (5, "between")),
        ((4, "data"), (4, "forward", 0, 2)),
        ((4, "backward", 0, 2), (4, "forward", 0, 1)),  # two micro-batches are left, and one
        ((4, "forward", 0, 1), (4, "backward", 0, 1)),
        ((4, "optimizer", 0), (4, "forward", 1, 3)),  # the first phase, and the second
        ((4, "evaluate"), (4, "gather")),
        ((4, "save"), (4, "barrier")),
        ((4, "record"), (4, "forward", 0, 1)),
    ],
)
def test_the_rank_that_is_behind_is_to_blame(
    ranks: dict[int, Heartbeat], tmp_path: Path, behind: tuple[int, str, int, int], ahead: tuple[int, str, int, int]
) -> None:
    for slow in (0, 1):
        for rank, (step, *place) in {slow: behind, 1 - slow: ahead}.items():
            ranks[rank].step = step
            ranks[rank].at(*place)  # type: ignore[arg-type]
            ranks[rank].write()
        reason = blame(tmp_path, read_ranks(tmp_path), [], 2, 600)
        assert f"rank {slow} " in reason
        assert f"rank {1 - slow} " not in reason
        assert f"hangs at step 4 in stage '{behind[1]}'" in reason
        assert "(nothing happened for 600 s)" in reason


def test_at_the_same_place_the_stacks_decide(ranks: dict[int, Heartbeat], tmp_path: Path) -> None:
    for rank, text in {0: IN_ENGINE, 1: IN_OWN_BACKWARD}.items():
        ranks[rank]._facts["main"] = MAIN
        ranks[rank].at("backward", 0, 1)
        ranks[rank].write()
        stack_file(tmp_path, rank).write_text(text)
    reason = blame(tmp_path, read_ranks(tmp_path), [], 2, 600)
    assert reason.startswith("rank 1 ")
    assert "in stage 'backward': nets/gan.py:12 in backward" in reason
    stack_file(tmp_path, 1).write_text(IN_ENGINE)
    reason = blame(tmp_path, read_ranks(tmp_path), [], 2, 600)
    assert "all ranks are at the same place" in reason
    assert "rank 0" in reason
    assert "rank 1" in reason


def test_ranks_that_are_gone_or_silent_come_first(ranks: dict[int, Heartbeat], tmp_path: Path) -> None:
    ranks[0].at("data")
    ranks[0].write()
    reason = blame(tmp_path, read_ranks(tmp_path), [1], 3, 600)
    assert reason.startswith("rank 2 has left; rank 1 (process ")
    assert "stands still since step 0, stage 'between': no heartbeat for 4 s" in reason
    assert "rank 0" not in reason


def test_stacks_are_read_and_torn_ones_too() -> None:
    assert waits(innermost(IN_ENGINE, MAIN))
    assert not waits(innermost(IN_OWN_BACKWARD, MAIN))
    assert shown(innermost(IN_ENGINE, MAIN)) == "autograd/graph.py:800 in _engine_run_backward < trainer/loop.py:190 in step"
    assert innermost(IN_ENGINE[:200], MAIN) == innermost("", MAIN) == []
    assert not waits([])


def test_a_save_under_way_counts_as_life_for_a_while(ranks: dict[int, Heartbeat], tmp_path: Path) -> None:
    timeout = 0.4
    for saving, patience in ((False, timeout), (True, SAVING * timeout)):
        given_up: list[str] = []
        hang = Hang(RunDir(tmp_path), ranks[0], 2, timeout, saving=lambda s=saving: s, give_up=given_up.append)  # type: ignore[misc]
        with contextlib.closing(hang):
            began = time.monotonic()
            while not ranks[0].hangs:
                time.sleep(0.02)
                hang()
            assert patience <= time.monotonic() - began < patience + 2
            assert "test_a_save_under_way" in stack_file(tmp_path, 0).read_text()
            hang()
            assert given_up == []  # the other rank does not say that it hangs, and is not silent for long
            ranks[0].at("between")
            hang()
            assert not ranks[0].hangs


def test_a_slow_rank_is_told_again_only_after_a_while(
    ranks: dict[int, Heartbeat], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("trainer.straggler.COMPARE_EVERY", 0.0)
    told: list[tuple[int, float, float]] = []
    watch = Stragglers(ranks[0], lambda rank, host, seconds, median, step: told.append((rank, seconds, median)))
    for seconds in ((0.1, 0.14), (0.1, None), (0.001, 0.019), (0.1, 0.16), (0.1, 0.1)):
        for rank, value in enumerate(seconds):
            ranks[rank].pace = lambda value=value: value  # type: ignore[misc]
            ranks[rank].write()
        watch()
    assert told == []  # not far enough, not known, too little, and only once in a row
    ranks[1].pace = lambda: 0.16
    ranks[1].write()
    for _ in range(4):
        watch()
    assert told == [(1, 0.16, 0.1)]
    monkeypatch.setattr("trainer.straggler.AGAIN_AFTER", 0.0)
    watch()
    assert len(told) == 2
