"""Starts the ranks of a run on this machine, passes signals on to them, and says how it ended."""

from __future__ import annotations

import ctypes
import os
import re
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path
from types import FrameType
from typing import IO

from launcher.agent import SIGNALS, words
from launcher.python import environment, trainer_command
from launcher.tree import ProcessTree
from trainer.config import EXIT_DONE, EXIT_FAULT, EXIT_REFUSED, EXIT_REQUEUE, EXIT_USER
from trainer.rundir import RunDir

EXIT_INTERRUPTED = 130
_PR_SET_PDEATHSIG = 1
_FORWARDED = {
    signal.SIGTERM: signal.SIGTERM, signal.SIGINT: signal.SIGTERM, signal.SIGHUP: signal.SIGTERM, signal.SIGUSR1: signal.SIGUSR1,
}  # fmt: skip
_IGNORED_AT_FIRST = (signal.SIGTERM, signal.SIGUSR1, signal.SIGUSR2)


def train(rundir: RunDir, options: list[str], *, world_size: int, threads: int, quiet_stdout: bool) -> int:
    """Train the run folder with `world_size` ranks on this machine; returns the exit code once no process of it is left.

    `options` are passed on to the trainer; `threads`: CPU threads a rank; `quiet_stdout` sends the ranks' stdout to stderr. An
    attempt that found its micro-batch too large is followed by the next one at once.
    """
    signals = _Signals()
    try:
        while True:
            code = _attempt(rundir, options, signals, world_size=world_size, threads=threads, quiet_stdout=quiet_stdout)
            marker = rundir.marker()
            if code != EXIT_REQUEUE or marker is None or not marker.again or signals.forward is not None:
                return code
    finally:
        signals.restore()


def _attempt(
    rundir: RunDir, options: list[str], signals: _Signals, *, world_size: int, threads: int, quiet_stdout: bool
) -> int:  # fmt: skip
    """One start of the ranks, to the end of their last process; the exit code."""
    log = rundir.logs / f"launch-{time.strftime('%Y%m%d-%H%M%S')}-{os.getpid()}.log"
    failure = rundir.logs / "failure.json"
    failure.unlink(missing_ok=True)
    before = rundir.marker()
    tree = ProcessTree()
    with log.open("ab") as file:  # two attempts may begin within a second
        child = subprocess.Popen(
            command(rundir, options, world_size, failure), env=_environment(world_size, threads),
            start_new_session=True, preexec_fn=_in_child(), stdout=sys.stderr if quiet_stdout else None, stderr=subprocess.PIPE,
        )  # fmt: skip
        pump = _Pump(child, file)
        try:
            while child.poll() is None:
                if signals.kill:
                    return EXIT_INTERRUPTED
                if signals.forward is not None:
                    tree.send_to_ranks(signals.forward, rundir.ranks)
                time.sleep(0.1)
            tree.end(grace=2.0)
        finally:
            tree.kill()
            pump.join(timeout=5)
            if _terminal():
                os.write(2, b"\x1b[?25h")  # a rank that was killed while it drew its bar left the cursor hidden
    marker = rundir.marker()
    if marker is not None and marker != before:
        if marker.state == "FAILED" and marker.reason not in pump.text():
            print(f"graft: {marker.reason}", file=sys.stderr)
        return {"DONE": EXIT_DONE, "REQUEUE": EXIT_REQUEUE, "FAILED": marker.code or EXIT_FAULT}[marker.state]
    first = {"rank": 0, "code": child.returncode, **rundir.read_json(failure)}
    return _unexplained(rundir, first["rank"], first["code"], log, pump.text())


def command(rundir: RunDir, options: list[str], world_size: int, failure: Path) -> list[str]:
    """The command that trains the folder: the trainer itself, or `accelerate launch` for several ranks."""
    trainer = trainer_command("train", str(rundir.path), *options)
    if world_size == 1:
        return trainer
    machine = words(rundir.logs / "accelerate.yaml", machines=1, processes=world_size, rank=0, address=None, port=0)
    return [sys.executable, "-m", "launcher.agent", str(failure), *machine, *trainer[1:]]


def _environment(world_size: int, threads: int) -> dict[str, str]:
    return {
        **environment(),
        "GRAFT_LAUNCHED": "1",  # the ranks die with the process that started them
        "GRAFT_WORLD": str(world_size),  # what was planned; a trainer that finds another world size refuses
        "OMP_NUM_THREADS": str(threads),
        "GRAFT_TERMINAL": _terminal(),  # where rank 0 draws its bar; the stderr of the ranks goes through a pipe
        **SIGNALS,
    }


def _terminal() -> str:
    """The name of the terminal that is our stderr; empty when it is none."""
    try:
        return os.ttyname(2)
    except OSError:
        return ""


def _in_child() -> Callable[[], None]:
    """What the child does before it becomes the trainer; looked up here, since little is safe between fork and exec."""
    libc, parent = ctypes.CDLL(None, use_errno=True), os.getpid()

    def prepare() -> None:
        libc.prctl(_PR_SET_PDEATHSIG, signal.SIGKILL, 0, 0, 0)  # even a kill -9 of the launcher ends the child
        if os.getppid() != parent:
            os._exit(EXIT_FAULT)
        for number in _IGNORED_AT_FIRST:
            signal.signal(number, signal.SIG_IGN)  # survives exec: a signal before the trainer's handlers is not fatal

    return prepare


class _Signals:
    """Signals to the launcher, as flags: what to forward to the ranks, and whether to end everything at once."""

    def __init__(self) -> None:
        self.forward: signal.Signals | None = None
        self.kill = False
        self._interrupts = 0
        self._before = {number: signal.getsignal(number) for number in _FORWARDED}
        for number, before in self._before.items():
            if number != signal.SIGHUP or before != signal.SIG_IGN:  # nohup
                signal.signal(number, self._received)

    def restore(self) -> None:
        for number, before in self._before.items():
            signal.signal(number, before)

    def _received(self, number: int, frame: FrameType | None) -> None:
        self.forward = self.forward or _FORWARDED[signal.Signals(number)]
        if number == signal.SIGINT:
            self._interrupts += 1
            self.kill = self._interrupts > 1
            said = b"ended at once" if self.kill else b"saving at the current step, then stopping; Ctrl-C again ends it at once"
            os.write(2, b"\ngraft: " + said + b"\n")


class _Pump(threading.Thread):
    """Passes the ranks' stderr on line by line and keeps it in a file.

    Once a line begins with `graft:` (an explained failure, which several ranks tell alike), no line is shown a second time.
    """

    def __init__(self, child: subprocess.Popen[bytes], file: IO[bytes]) -> None:
        super().__init__(name="stderr", daemon=True)
        assert child.stderr is not None
        self._from, self._file = child.stderr.fileno(), file
        self._shown: list[bytes] = []
        self._explaining = False
        self.start()

    def run(self) -> None:
        rest = b""
        while chunk := os.read(self._from, 65536):
            self._file.write(chunk)
            self._file.flush()
            *lines, rest = re.split(rb"(?<=[\r\n])", rest + chunk)  # a progress bar ends its lines with \r
            for line in lines:
                self._show(line)
        self._show(rest)

    def _show(self, line: bytes) -> None:
        self._explaining = self._explaining or line.startswith(b"graft:")
        if line and not (self._explaining and line.strip() and line in self._shown):
            os.write(2, line)
            self._shown = [*self._shown[-199:], line]

    def text(self) -> str:
        """The last lines that were shown."""
        return b"".join(self._shown).decode(errors="replace")


def _unexplained(rundir: RunDir, rank: int, code: int, log: Path, shown: str) -> int:
    """The ranks left no marker: say what is known, and return the exit code."""
    if code in (EXIT_USER, EXIT_REFUSED, EXIT_REQUEUE) and shown.strip():
        return code  # refused before the folder was theirs to mark, and they said why
    how = f"was killed by {signal.Signals(-code).name}" if code < 0 else f"ended with exit code {code} and no result"
    newest = rundir.log_of(rank) or log
    lines = newest.read_text(encoding="utf-8", errors="replace").splitlines()[-15:]
    if lines and lines[-1] not in shown:
        print("\n".join(lines), file=sys.stderr)
    print(f"graft: rank {rank} {how}; its log: {newest}; the same command goes on from the last checkpoint", file=sys.stderr)
    return EXIT_FAULT
