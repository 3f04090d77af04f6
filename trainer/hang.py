"""Notices that the training stands still, names the rank that holds it up, and ends the process, so that the job starts again.

It runs in the heart's thread, which lives on while the main thread waits in a collective or sleeps. Where C code holds the
interpreter's lock, that thread stands still too: then faulthandler's own timer, which needs no lock, writes the stacks, and the
other ranks see a heart that stands still.
"""

from __future__ import annotations

import contextlib
import faulthandler
import logging
import os
import signal
import socket
import threading
import time
from collections.abc import Callable
from pathlib import Path
from types import FrameType
from typing import Any

import psutil

from trainer.rundir import RunDir
from trainer.stacks import innermost, shown, waits
from trainer.watch import BEAT_EVERY, Heartbeat, name_of, read_ranks

STILL_AFTER = 4 * BEAT_EVERY  # seconds without a beat: that process does not run
TURN = 5.0  # seconds after which the next rank judges, where rank 0 cannot
SAVING = 2.0  # while a checkpoint is written, a rank has so many times the patience
LEAVE_WITHIN = 30.0  # seconds for all that is said before the end: a dead file system must not hold it up
NAMED = 4  # ranks in one message

log = logging.getLogger("graft")


def stack_file(folder: Path, rank: int) -> Path:
    """Where the watch of a rank writes the Python stacks of its process."""
    return folder / f"rank-{rank:05d}.stack"


class Hang:
    """Called after every beat. When nothing ticked for `timeout` seconds on any rank, `give_up` gets the reason and ends the
    process.

    Rank 0 judges, the next rank where rank 0 is silent: nobody does while some rank still ticks (a longer evaluation), and all
    read the same heartbeats. Time counts in beats, so that a job that was suspended as a whole does not wake up overdue.
    """

    def __init__(
        self,
        folder: RunDir,
        heart: Heartbeat,
        world: int,
        timeout: float,
        *,
        saving: Callable[[], bool],
        give_up: Callable[[str], None],
    ) -> None:
        self._folder, self._heart, self._world, self._timeout = folder, heart, world, timeout
        self._saving, self._give_up = saving, give_up
        self._ticks = heart.ticks
        self._idle = 0.0
        self._waited = 0.0  # seconds since this rank found that it hangs
        self._looked = time.monotonic()
        self._beats: dict[int, tuple[int | None, float]] = {}  # of other ranks: the last beat, and when it was new
        self._lock = threading.RLock()  # Ctrl-Z may come while the main thread holds it
        self._closed = False
        self._pid = os.getpid()
        self._suspend_as_before = signal.signal(signal.SIGTSTP, self._suspend) if world == 1 else None
        try:
            self._file = os.open(stack_file(heart.folder, heart.rank), os.O_RDWR | os.O_CREAT | os.O_TRUNC, 0o644)
        except OSError:  # a full disk is no reason to stop
            self._file = os.open(os.devnull, os.O_RDWR)
        # what nobody is left to copy into the log goes there at once
        record = folder.log_of(heart.rank) if world == 1 else None
        self._late = os.open(record, os.O_WRONLY | os.O_APPEND) if record is not None else os.dup(self._file)
        self._arm()

    def close(self) -> None:
        """The training has ended: no more watching."""
        with self._lock:
            self._closed = True
            if self._suspend_as_before is not None:
                signal.signal(signal.SIGTSTP, self._suspend_as_before)
            faulthandler.cancel_dump_traceback_later()
            os.close(self._file)
            os.close(self._late)
            with contextlib.suppress(OSError):
                stack_file(self._heart.folder, self._heart.rank).unlink(missing_ok=True)

    def _suspend(self, number: int, frame: FrameType | None) -> None:
        """Ctrl-Z, or Slurm that suspends a job: the timer, which knows no pause, must not go off when the process goes on."""
        if os.getpid() != self._pid:  # a loader worker, which has no timer
            os.kill(os.getpid(), signal.SIGSTOP)
            return
        with self._lock:
            faulthandler.cancel_dump_traceback_later()
            os.kill(os.getpid(), signal.SIGSTOP)  # the next beat sets the timer again

    def __call__(self) -> None:
        with self._lock:
            if not self._closed:
                self._look()

    def _look(self) -> None:
        now = time.monotonic()
        passed, self._looked = min(now - self._looked, 2 * BEAT_EVERY), now
        if self._heart.ticks != self._ticks:
            self._ticks, self._idle, self._waited = self._heart.ticks, 0.0, 0.0
            self._beats.clear()
            if self._heart.hangs:
                self._heart.hangs = False
                log.info("rank %d goes on after all", self._heart.rank)
        self._idle += passed / SAVING if self._saving() else passed
        self._arm()
        if self._idle < self._timeout:
            return
        if not self._heart.hangs:
            self._tell()
            return
        self._waited += passed
        reason = self._judge()
        if reason is not None:
            self._give_up(reason)

    def _arm(self) -> None:
        """Have the stacks written, should this thread not come here again in time.

        The others judge by them a little later. Alone, and at the end, nobody else would end this process.
        """
        if not self._heart.hangs and os.lseek(self._file, 0, os.SEEK_CUR):
            log.warning("this process stood still as a whole for %.0f s; it was here:\n%s", self._timeout, self._own())
            self._clear()
        late = LEAVE_WITHIN if self._heart.hangs else self._timeout
        faulthandler.dump_traceback_later(late, file=self._late, exit=self._heart.hangs or self._world == 1)

    def _own(self) -> str:
        size = os.lseek(self._file, 0, os.SEEK_CUR)
        return os.pread(self._file, size, 0).decode(errors="replace")

    def _clear(self) -> None:
        os.ftruncate(self._file, 0)
        os.lseek(self._file, 0, os.SEEK_SET)

    def _tell(self) -> None:
        """Write the stacks, then let the others know: who reads `hangs` finds them written."""
        self._clear()
        faulthandler.dump_traceback(self._file)
        self._heart.hangs = True
        self._heart.write()
        log.info("nothing happened for %.0f s; the Python stacks of this process:\n%s", self._timeout, self._own())

    def _judge(self) -> str | None:
        """The reason to give up, none as long as there is none."""
        marker = self._folder.marker()
        if marker is not None and marker.state == "FAILED":
            return marker.reason  # another rank was first
        if self._waited < (TURN + self._heart.rank / 10) * (self._heart.rank > 0):
            return None
        ranks = read_ranks(self._heart.folder)
        silent = [rank for rank in range(self._world) if rank != self._heart.rank and not ranks.get(rank, {}).get("hangs")]
        for rank in silent:
            beat = ranks.get(rank, {}).get("beat")  # none: it left, or the file system has a hiccup
            if self._beats.setdefault(rank, (beat, self._waited))[0] != beat:
                self._beats[rank] = (beat, self._waited)
        if any(self._waited - self._beats[rank][1] < STILL_AFTER for rank in silent):
            return None
        return blame(self._heart.folder, ranks, [rank for rank in silent if rank in ranks], self._world, self._timeout)


def blame(folder: Path, ranks: dict[int, dict[str, Any]], still: list[int], world: int, timeout: float) -> str:
    """Who holds the others up: processes that are gone or do not run, else those that are behind, with their Python stacks."""
    gone = [f"rank {rank} has left" for rank in range(world) if rank not in ranks]
    if gone or still:
        silent = [_silent(ranks[rank]) + _where(folder, ranks[rank]) for rank in still]
        return _some([*gone, *silent])
    lowest = min(facts["position"] for facts in ranks.values())
    behind = [facts for _, facts in sorted(ranks.items()) if facts["position"] == lowest]
    # At the same place the one that waits for the others is not to blame.
    guilty = [facts for facts in behind if not waits(_frames(folder, facts))] or behind
    for facts in guilty[:NAMED]:
        with contextlib.suppress(OSError):
            log.info("the stacks of %s:\n%s", name_of(facts), stack_file(folder, facts["rank"]).read_text(errors="replace"))
    what = f"nothing happened for {timeout:.0f} s"
    if len(guilty) == world > 1:
        what += ", all ranks are at the same place"
    said = [f"{name_of(f)} hangs at step {f['step']} in stage '{f['stage']}'" + _where(folder, f) for f in guilty]
    return f"{_some(said)} ({what})"


def _some(said: list[str]) -> str:
    more = f"; and {len(said) - NAMED} more" if len(said) > NAMED else ""
    return "; ".join(said[:NAMED]) + more


def _silent(facts: dict[str, Any]) -> str:
    state = ""
    if facts["host"] == socket.gethostname():
        try:
            state = f" (its process is {psutil.Process(facts['pid']).status()})"
        except psutil.NoSuchProcess:
            state = " (its process is gone)"
    where = f"since step {facts['step']}, stage '{facts['stage']}'"
    return f"{name_of(facts)} stands still {where}: no heartbeat for {STILL_AFTER:.0f} s{state}"


def _frames(folder: Path, facts: dict[str, Any]) -> list[str]:
    try:
        text = stack_file(folder, facts["rank"]).read_text(encoding="utf-8", errors="replace")
    except OSError:
        return []
    return innermost(text, facts["main"])


def _where(folder: Path, facts: dict[str, Any]) -> str:
    frames = _frames(folder, facts)
    return f": {shown(frames)}" if frames else ""
