"""The frame of an attempt: arguments, logs, the lease, and what a failure leaves behind."""

from __future__ import annotations

import argparse
import contextlib
import logging
import os
import sys
import traceback
from pathlib import Path

from trainer.config import EXIT_FAULT, EXIT_REQUEUE, GraftError, Run, UserError, load
from trainer.journal import Journal
from trainer.rundir import Lease, RunDir
from trainer.signals import StopFlag
from trainer.watch import Heartbeat

log = logging.getLogger("graft")
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


def open_folder(arguments: argparse.Namespace, *, main: bool) -> tuple[RunDir, Run]:
    """The run folder that is asked for, made from the run file by rank 0, and its run."""
    if arguments.run.is_dir():
        if arguments.overrides:
            raise UserError("overrides go with a run file; the settings of a run folder stand in its run.yaml")
        folder = RunDir(arguments.run.resolve())
        run = folder.load()
    else:
        run = load(arguments.run, arguments.overrides)
        folder = RunDir((arguments.runs / run.name).resolve())
    if main:
        folder.prepare(run, accept_changes=arguments.accept_changes)
    return folder, run


def logs(folder: RunDir, attempt: int, rank: int) -> None:
    """One file a rank and attempt, the newest linked as rank-00000.log; warnings of rank 0 also on the terminal."""
    logging.raiseExceptions = False  # a full disk must not print a traceback for every line
    path = folder.logs / f"attempt-{attempt:03d}-rank-{rank:05d}.log"
    file = logging.FileHandler(path, encoding="utf-8", delay=True)
    file.setFormatter(logging.Formatter("%(asctime)s %(levelname)s %(name)s: %(message)s"))
    root = logging.getLogger()
    root.addHandler(file)
    log.setLevel(logging.INFO)
    if rank == 0:
        terminal = logging.StreamHandler(sys.stderr)
        terminal.setLevel(logging.WARNING)
        terminal.setFormatter(logging.Formatter("graft: %(message)s"))
        root.addHandler(terminal)
    logging.captureWarnings(True)
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
    attempt = Attempt(stop, rank)
    try:
        return attempt.run(parse(argv))
    except GraftError as error:
        attempt.failed(error.code, str(error))
        code = error.code
    except Exception as error:
        attempt.failed(EXIT_FAULT, attempt.explain(error))
        code = EXIT_FAULT
    finally:
        attempt.close()
    if attempt.world > 1:
        # A failed process group may wait for ever in its own clean-up.
        sys.stderr.flush()
        os._exit(code)
    return code


class Attempt:
    """What an attempt holds, so that a failure at any point can be explained and cleaned up."""

    def __init__(self, stop: StopFlag, rank: int) -> None:
        self.world = int(os.environ.get("WORLD_SIZE", "1"))
        self._stop = stop
        self._rank = rank
        self._folder: RunDir | None = None
        self._lease: Lease | None = None
        self._journal: Journal | None = None
        self._heart: Heartbeat | None = None
        self._owned = False

    def run(self, arguments: argparse.Namespace) -> int:
        from trainer.runtime import Runtime
        from trainer.session import start

        main = self._rank == 0
        folder, run = open_folder(arguments, main=main)
        if main:
            self._lease = Lease(folder.lease)
            self._folder, self._owned = folder, True
            for old in folder.ranks.glob("rank-*.json"):
                old.unlink(missing_ok=True)
            folder.clear_markers()
            self._journal = Journal(folder, main=True, world=self.world, retry=arguments.retry)
            logs(folder, self._journal.attempt, 0)
        planned = int(os.environ["GRAFT_WORLD"]) if "GRAFT_WORLD" in os.environ else None
        runtime = Runtime(run.parallel, run.train, planned=planned)
        # The ranks have met: rank 0 holds the lease and has made the folder, the others may use it from here on.
        attempt = runtime.from_main(self._journal.attempt if self._journal else None)
        if not main:
            self._folder, self._owned = folder, True
            self._journal = Journal(folder, main=False, world=self.world, retry=True)
            logs(folder, attempt, self._rank)
        assert self._journal is not None
        self._heart = Heartbeat(folder.ranks, self._rank)
        code = start(
            folder, runtime, self._journal, self._lease, self._stop, self._heart, accept_changes=arguments.accept_changes
        )
        runtime.close()
        # torchrun reports every exit code but 0 as a crash; there the marker speaks.
        return 0 if self.world > 1 and code == EXIT_REQUEUE else code

    def explain(self, error: Exception) -> str:
        """One line for a failure that is not an explained one; when a collective failed, who is to blame for it."""
        lines = str(error).strip().splitlines() or ["no message"]
        text = f"{type(error).__name__}: {lines[0]}"
        collective = isinstance(error, RuntimeError) and any(word in str(error) for word in _COLLECTIVE)
        if self.world > 1 and collective and self._folder is not None:
            log.info("%s", traceback.format_exc())
            from trainer.watch import suspects

            return f"{suspects(self._folder.ranks, me=self._rank, world=self.world)} ({text})"
        log.error("%s", traceback.format_exc())  # a bug, ours or that of a network of the user's own
        return text

    def failed(self, code: int, reason: str) -> None:
        """Leave the marker of the first failure of an attempt and say it, once."""
        log.info("failed: %s", reason)
        step = self._heart.step if self._heart else 0
        first = False
        folder = self._folder
        if folder is not None and self._owned:
            if not (folder.path / "FAILED").exists():
                with contextlib.suppress(OSError):
                    folder.mark("FAILED", reason, code, step)
                    first = True
            if self._journal is not None:
                marker = folder.marker()
                self._journal.ended("FAILED", step, marker.reason if marker else reason)
        if first or not self._owned:  # the ranks that were drawn into it stay silent
            print(f"graft: {reason}", file=sys.stderr, flush=True)

    def close(self) -> None:
        if self._heart is not None:
            self._heart.close()
        if self._lease is not None:
            with contextlib.suppress(OSError):
                self._lease.release()
