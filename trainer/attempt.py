"""The frame of an attempt: arguments, logs, the lease, and what a failure leaves behind."""

from __future__ import annotations

import argparse
import contextlib
import errno
import logging
import os
import re
import sys
import threading
import traceback
from pathlib import Path

from trainer.config import EXIT_FAULT, EXIT_REQUEUE, GraftError, Run, UserError, load
from trainer.config.compute import not_compiled
from trainer.journal import Journal
from trainer.rundir import Lease, RunDir, TooLargeError, node_name
from trainer.rundir.lease import read_holder
from trainer.signals import StopFlag
from trainer.watch import Heartbeat

log = logging.getLogger("graft")
# Errors of CUDA that no program can cause. Illegal addresses, asserts, launch failures and a lack of memory are not among them.
_BROKEN = re.compile(
    r"uncorrectable (ECC|NVLink) error|double.bit ECC|busy or unavailable|device unavailable|no CUDA-capable device is detected"
    r"|GPU is lost|fallen off the bus|system not yet initialized",
    re.IGNORECASE,
)
# How gloo and NCCL say that another rank did not answer; torch has no exception type for it.
_COLLECTIVE = ("gloo", "Connection closed", "Connection reset", "timed out", "Timed out", "NCCL", "Broken pipe")


def parse(argv: list[str]) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m trainer train", description="Train a run file or a run folder.")
    parser.add_argument("run", type=Path, help="a run file, or the folder of a run")
    parser.add_argument("overrides", nargs="*", metavar="key=value")
    parser.add_argument("--runs", type=Path, default=Path("runs"), help="where the folder of a run file is made")
    parser.add_argument("--accept-changes", action="store_true", help="go on with other settings or data than the last attempt")
    parser.add_argument("--retry", action="store_true", help="start although the same failure came three times")
    return parser.parse_intermixed_args(argv)  # overrides may stand before and after options


def named(arguments: argparse.Namespace) -> tuple[RunDir, Run]:
    """The run folder that is asked for, which need not exist yet, and its run."""
    if arguments.run.is_dir():
        if arguments.overrides:
            raise UserError("overrides go with a run file; the settings of a run folder stand in its run.yaml")
        folder = RunDir(arguments.run.resolve())
        return folder, folder.load()
    run = load(arguments.run, arguments.overrides)
    return RunDir((arguments.runs / run.name).resolve()), run


def logs(folder: RunDir, attempt: int, rank: int) -> None:
    """One file a rank and attempt, the newest linked as rank-00000.log; warnings of rank 0 also on the terminal."""
    logging.raiseExceptions = False  # a full disk must not print a traceback for every line
    path = folder.logs / f"attempt-{attempt:03d}-rank-{rank:05d}.log"
    root = logging.getLogger()
    log.setLevel(logging.INFO)
    if rank == 0:
        terminal = logging.StreamHandler(sys.stderr)
        terminal.setLevel(logging.WARNING)
        terminal.setFormatter(logging.Formatter("graft: %(message)s"))
        root.addHandler(terminal)
    logging.captureWarnings(True)
    try:
        file = logging.FileHandler(path, encoding="utf-8")
    except OSError as error:
        log.warning("there will be no log: %s", error)
        return
    file.setFormatter(logging.Formatter("%(asctime)s %(levelname)s %(name)s: %(message)s"))
    root.addHandler(file)
    link = folder.logs / f"rank-{rank:05d}.log"
    temporary = link.with_suffix(f".{os.getpid()}.tmp")
    try:
        temporary.symlink_to(path.name)
        temporary.replace(link)
    except OSError as error:
        log.warning("the newest log is not linked: %s", error)


def main(argv: list[str], stop: StopFlag) -> int:
    """Run one attempt on this rank; every failure becomes a message, a marker and an exit code."""
    rank = int(os.environ.get("RANK", "0"))
    attempt, arguments = Attempt(stop, rank), parse(argv)
    try:
        return attempt.run(arguments)
    except GraftError as error:
        code = attempt.failed(error.code, str(error), error)
    except (Exception, SystemExit) as error:  # a network of the user's own may call sys.exit
        code = attempt.failed(EXIT_FAULT, attempt.explain(error))
    finally:
        attempt.close()
    if attempt.world > 1:
        # A failed process group may wait for ever in its own clean-up.
        for stream in (sys.stdout, sys.stderr):
            with contextlib.suppress(OSError, ValueError):
                stream.flush()
        os._exit(code)
    return code


class Attempt:
    """What an attempt holds, so that a failure at any point can be explained and cleaned up."""

    def __init__(self, stop: StopFlag, rank: int) -> None:
        self.world = int(os.environ.get("WORLD_SIZE", "1"))
        self._stop = stop
        self._rank = rank
        self._folder: RunDir | None = None
        self._run: Run | None = None
        self._lease: Lease | None = None
        self._token: str | None = None  # of the lease under which all ranks of this attempt write
        self._journal: Journal | None = None
        self._heart: Heartbeat | None = None
        self._owned = False
        self._telling = threading.Lock()
        self._told = False

    def run(self, arguments: argparse.Namespace) -> int:
        from trainer.runtime import Runtime
        from trainer.session import start

        main = self._rank == 0
        folder, run = named(arguments)
        self._run = run
        if main:
            folder.create()
            self._lease = Lease(folder.lease, exits=True)
            self._token = self._lease.token
            folder.prepare(run, accept_changes=arguments.accept_changes)
            self._folder, self._owned = folder, True
            for old in [*folder.ranks.glob("rank-*.json"), *folder.ranks.glob("rank-*.stack")]:
                old.unlink(missing_ok=True)
            folder.clear_markers()
            self._journal = Journal(folder, main=True, world=self.world, retry=arguments.retry)
            logs(folder, self._journal.attempt, 0)
        planned = int(os.environ["GRAFT_WORLD"]) if "GRAFT_WORLD" in os.environ else None
        runtime = Runtime(run.parallel, run.train, planned=planned, uncompiled=not_compiled(run))
        # The ranks have met: rank 0 holds the lease and has made the folder, the others may use it from here on.
        attempt, self._token = runtime.from_main((self._journal.attempt, self._token) if self._journal else None)
        if not main:
            self._folder, self._owned = folder, True
            self._journal = Journal(folder, main=False, world=self.world, retry=True)
            logs(folder, attempt, self._rank)
        assert self._journal is not None
        self._heart = Heartbeat(folder.ranks, self._rank)
        code = start(
            folder, runtime, self._journal, self._lease, self._stop, self._heart,
            accept_changes=arguments.accept_changes, give_up=self.give_up,
        )  # fmt: skip
        runtime.close()
        # torchrun reports every exit code but 0 as a crash; there the marker speaks.
        return 0 if self.world > 1 and code == EXIT_REQUEUE else code

    def explain(self, error: BaseException) -> str:
        """One line for a failure that is not an explained one; when a collective failed, who is to blame for it."""
        lines = str(error).strip().splitlines() or ["no message"]
        text = f"{type(error).__name__}: {lines[0]}"
        collective = isinstance(error, RuntimeError) and any(word in str(error) for word in _COLLECTIVE)
        if _BROKEN.search(str(error)) and isinstance(error, RuntimeError):
            return self._broken(text)
        if self.world > 1 and collective and self._folder is not None:
            log.info("%s", traceback.format_exc())
            if _said(self._folder):
                return text  # another rank said why, and left
            from trainer.watch import suspects

            return f"{suspects(self._folder.ranks, me=self._rank, world=self.world)} ({text})"
        from trainer.shortage import advice

        cause = advice(error, self._run, self._heart.stage if self._heart else "") or _cause(error)
        # without a cause it is a bug, ours or that of a network of the user's own, and the terminal shows where
        log.log(logging.INFO if cause else logging.ERROR, "%s", traceback.format_exc())
        return f"{cause} ({text})" if cause else text

    def _broken(self, text: str) -> str:
        """Have the node left out when Slurm starts this job again."""
        log.info("%s", traceback.format_exc())
        node = node_name()
        if self._folder is not None and self._owned and self._ours(self._folder):
            self._folder.report_bad(node, text)
        return f"the hardware of {node} is broken ({text}); the node is noted in log/bad-nodes.jsonl"

    def failed(self, code: int, reason: str, error: GraftError | None = None) -> int:
        """Leave the marker of the first failure of an attempt and say it, once: the watch may find a hang meanwhile. Returns the
        exit code."""
        with self._telling:
            if not self._told:
                self._told = True
                return self._tell(code, reason, error)
        return code

    def give_up(self, reason: str) -> None:
        """End this process at once, from any thread: the training hangs."""
        self.failed(EXIT_FAULT, reason)
        os._exit(EXIT_FAULT)

    def _tell(self, code: int, reason: str, error: GraftError | None) -> int:
        log.info("failed: %s", reason)
        step = self._heart.step if self._heart else 0
        folder = self._folder
        drawn_in = False  # by another rank, which said why
        if folder is not None and self._owned and self._ours(folder):
            drawn_in = _said(folder)
            again = isinstance(error, TooLargeError)
            if isinstance(error, TooLargeError):
                try:
                    error.sizes.write(folder)  # first: who finds the marker finds the sizes
                except OSError as problem:  # and without them the next start would end as this one did
                    again, code, reason = False, EXIT_FAULT, f"{reason}; but that could not be written: {problem.strerror}"
            if not drawn_in:
                with contextlib.suppress(OSError):
                    folder.mark("REQUEUE" if again else "FAILED", reason, code, step, again=again)
            if self._journal is not None:
                marker = folder.marker()
                self._journal.ended(marker.state if marker else "FAILED", step, marker.reason if marker else reason)
        if not drawn_in:
            print(f"graft: {reason}", file=sys.stderr, flush=True)
        return code

    def _ours(self, folder: RunDir) -> bool:
        """Whether no later attempt took the folder over, whose markers are not ours to set."""
        holder = read_holder(folder.lease)
        return holder is None or holder.token == self._token

    def close(self) -> None:
        if self._heart is not None:
            with contextlib.suppress(OSError):
                self._heart.close()
        if self._lease is not None:
            with contextlib.suppress(OSError):
                self._lease.release()


def _said(folder: RunDir) -> bool:
    """Whether a rank of this attempt left the reason why it goes no further."""
    marker = folder.marker()
    return marker is not None and marker.state != "DONE"


def _cause(error: BaseException) -> str | None:
    """What to do about a failure that the machine is to blame for."""
    if isinstance(error, OSError) and error.errno in (errno.ENOSPC, errno.EDQUOT):
        return "the disk is full: make room and start the same command again"
    return None
