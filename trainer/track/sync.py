"""`graft sync`: the W&B server gets what it lacks of a run, from the run's own record.

Line i of metrics.jsonl is row i of the W&B run. So the server is asked how many rows it has, and is sent the lines that follow:
those that a committed checkpoint covers, which no kill can undo (all, when the run is done). That needs nothing to be kept here,
can be killed at any instant and started again, and is right whatever mixture of offline and online attempts came before.
"""

from __future__ import annotations

import contextlib
import fcntl
import json
import math
import os
import resource
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import IO, Any

from trainer.config import EXIT_DONE, EXIT_FAULT, EXIT_REFUSED, EXIT_USER, GraftError, Run, UserError
from trainer.config.run import WandB
from trainer.rundir import RunDir, read_points
from trainer.rundir.lease import held_by
from trainer.track.sync_worker import ROWS_A_SECOND
from trainer.track.wandb_sink import child_environment, kill, opening

_LOOK_EVERY = 1.0  # seconds between two looks at the files of a run that goes on; the server is asked more rarely
_PATIENCE = 12.0  # seconds of looking at a lease of another host, which beats every five
_INTERRUPTED = 130


@dataclass(frozen=True)
class Outcome:
    """What became of a run: complete, partial, online (its attempt reports itself), busy (another sync) or failed.

    `rows`: what the server has, none when it did not say; `of`: what it can have so far; `final`: nothing will be added.
    """

    name: str
    folder: str
    state: str
    rows: int | None = None
    of: int = 0
    sent: int = 0
    final: bool = False
    reason: str = ""
    url: str | None = None
    code: int = EXIT_DONE

    def text(self) -> str:
        """One line for a person."""
        if self.state in ("failed", "busy", "online"):
            return f"{self.name}: {self.reason}"
        new = f"{self.sent:,} rows sent" if self.sent else "nothing new"
        if self.state == "partial":
            return f"{self.name}: {new}; the server has {self.rows:,} of {self.of:,}; the same command sends the rest"
        so_far = "" if self.final else " there are so far"
        return f"{self.name}: {new}; the server has all {self.rows:,}{so_far}" + (f"  {self.url}" if self.url else "")


class _Sender:
    """The process that talks to wandb, started when it is needed, and again after it failed."""

    def __init__(self) -> None:
        self._child: subprocess.Popen[bytes] | None = None

    def ask(self, folder: RunDir, request: dict[str, Any], patience: float) -> dict[str, Any]:
        """Its answer; a failure in its place when there is none within `patience` seconds."""
        child = self._start(folder)
        assert child.stdin is not None
        assert child.stdout is not None
        late = threading.Timer(patience, kill, (child,))
        late.daemon = True
        late.start()
        try:
            child.stdin.write(json.dumps(request).encode() + b"\n")
            child.stdin.flush()
            for line in child.stdout:
                said: dict[str, Any] = json.loads(line)
                if "state" in said:
                    return said
                if said["level"] == "warning" or sys.stderr.isatty():
                    print(f"{request['name']}: {said['text']}", file=sys.stderr)
        except OSError:
            pass
        finally:
            late.cancel()
        self.close()
        return {"state": "failed", "reason": f"wandb gave no answer (log/sync.log); it had {patience:.0f} s", "code": EXIT_FAULT}

    def _start(self, folder: RunDir) -> subprocess.Popen[bytes]:
        if self._child is None or self._child.poll() is not None:
            command = [sys.executable, "-m", "trainer.track.sync_worker", str(os.getpid())]
            with (folder.logs / "sync.log").open("ab") as errors:
                self._child = subprocess.Popen(
                    command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=errors, env=child_environment(folder.path)
                )
        return self._child

    def close(self) -> None:
        child, self._child = self._child, None
        if child is not None:
            kill(child)
            for pipe in (child.stdin, child.stdout):
                if pipe is not None:
                    with contextlib.suppress(OSError):
                        pipe.close()


class Sync:
    """The runs that are sent, each held against a second sync from its first turn on."""

    def __init__(self, every: float) -> None:
        self._every = every
        self._sender = _Sender()
        self._locks: dict[Path, IO[str]] = {}
        soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
        resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard) if soft < hard else (soft, hard))

    def close(self) -> None:
        self._sender.close()
        for file in self._locks.values():
            file.close()

    def once(self, folder: RunDir) -> Outcome:
        """Send what the server lacks of a run. Raises UserError where the server takes no key of ours."""
        run = folder.load()
        blank = Outcome(folder.name, str(folder.path), "failed")
        try:
            free = self._lock(folder)
        except OSError as error:
            return replace(blank, reason=f"not sent: {error}", code=EXIT_FAULT)
        if not free:
            reason = "another `graft sync` is sending it; wait for it or stop it first"
            return replace(blank, state="busy", reason=reason, code=EXIT_REFUSED)
        online = "its running attempt reports online itself; left alone"
        if _reports_itself(folder):
            return replace(blank, state="online", reason=online)
        points, final = _final_points(folder)
        settings = wanted(run)
        request = {**opening(folder, run, settings), "points": points, "summary": _summary(folder)}
        said = self._sender.ask(folder, request, 4 * settings.timeout + 60 + points / ROWS_A_SECOND)
        if said.get("code") == EXIT_USER:
            raise UserError(said["reason"])
        reason = online if said["state"] == "online" else f"not sent: {said['reason']}" if "reason" in said else ""
        code = said.get("code", EXIT_FAULT if said["state"] == "partial" else EXIT_DONE)
        if said["state"] == "complete" and final:
            for file in (folder.path / "wandb").glob("offline-run-*/*.wandb"):
                file.with_suffix(".wandb.synced").touch()  # or `wandb sync` would send its rows a second time
        return replace(
            blank, state=said["state"], rows=said.get("rows"), of=points, sent=said.get("sent", 0), final=final, reason=reason,
            url=said.get("url"), code=code,
        )  # fmt: skip

    def _lock(self, folder: RunDir) -> bool:
        if folder.path not in self._locks:
            (folder.path / "wandb").mkdir(exist_ok=True)
            file = (folder.path / "wandb" / "sync.lock").open("a")
            try:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                file.close()
                return False
            except OSError:
                pass  # a file system without locks
            self._locks[folder.path] = file
        return True

    def follow(self, folders: list[RunDir], show: Callable[[Outcome, float | None], None]) -> list[Outcome]:
        """Send until every run is over and the server has all of it; `show` gets each outcome that is new."""
        last: dict[Path, Outcome] = {}
        tried: dict[Path, float] = {}
        waiting = list(folders)
        while waiting:
            for folder in list(waiting):
                before, now = last.get(folder.path), time.monotonic()
                rested = now - tried.get(folder.path, -math.inf) >= self._every
                points, final = _final_points(folder)
                news = before is None or before.state != "complete" or points > (before.rows or 0)
                over = final and before is not None and not before.final
                if not ((news and rested) or over):
                    continue
                outcome = self.once(folder)
                last[folder.path], tried[folder.path] = outcome, time.monotonic()
                if outcome.sent or before is None or (outcome.state, outcome.reason) != (before.state, before.reason):
                    show(outcome, _share(folder))
                if outcome.code == EXIT_REFUSED or (outcome.state == "complete" and outcome.final):
                    waiting.remove(folder)
            if waiting:
                time.sleep(_LOOK_EVERY)
        return [last[folder.path] for folder in folders]


def wanted(run: Run) -> WandB:
    """The W&B settings of a run. Raises UserError when it has none."""
    settings = run.track.wandb
    if settings is None or settings.mode == "disabled":
        raise UserError(f"{run.name} is not tracked with W&B: its run.yaml has no track.wandb, or has mode: disabled there")
    return settings


def _reports_itself(folder: RunDir) -> bool:
    """Whether the running attempt went online; the lock on wandb/server.lock says it too, where the file system has locks."""
    cursor = folder.read_json(folder.path / "wandb" / "cursor.json")
    return bool(cursor.get("online")) and cursor.get("end") is None and held_by(folder.lease, patience=_PATIENCE) is not None


def _final_points(folder: RunDir) -> tuple[int, bool]:
    """How many points of the record cannot change any more, and whether nothing will come by itself any more.

    An attempt that is done still writes the end of its offline files: it holds the folder until then.
    """
    marker = folder.marker()
    if marker is not None and marker.state == "DONE":
        return len(read_points(folder.metrics)), held_by(folder.lease, patience=_PATIENCE) is None
    return folder.covered(), marker is not None and marker.state == "FAILED"


def _summary(folder: RunDir) -> dict[str, Any]:
    """The final values, as an online attempt sets them; none before the run is done."""
    summary = folder.read_json(folder.summary)
    if summary.get("state") != "done" or not (folder.path / "DONE").exists():
        return {}
    values = {**summary.get("final", {}), "best": (summary.get("best") or {}).get("value"), "ettr": summary.get("ettr")}
    return {key: value for key, value in values.items() if value is not None}


def _share(folder: RunDir) -> float | None:
    """How much of the run is trained, as far as its summary knows."""
    summary = folder.read_json(folder.summary)
    total = summary.get("total_samples")
    return summary["samples"] / total if total else None


def sync(folders: list[RunDir], *, follow: bool, every: float, as_json: bool) -> int:
    """Send runs, say what became of each, and return the exit code."""

    def show(outcome: Outcome, share: float | None = None) -> None:
        trained = f"  ({share:.0%} trained)" if share is not None and not outcome.final else ""
        if outcome.code != EXIT_DONE:
            print(f"graft: {outcome.text()}", file=sys.stderr, flush=True)
        else:
            print(outcome.text() + trained, file=sys.stderr if as_json else sys.stdout, flush=True)

    outcomes: list[Outcome] = []
    usable = []
    for folder in folders:
        try:
            wanted(folder.load())
            usable.append(folder)
        except GraftError as error:
            if len(folders) == 1:
                raise
            outcomes.append(Outcome(folder.name, str(folder.path), "failed", reason=str(error), code=error.code))
            show(outcomes[-1])
    working = Sync(every)
    try:
        if follow:
            outcomes += working.follow(usable, show)
        else:
            for folder in usable:
                outcomes.append(working.once(folder))
                show(outcomes[-1])
    except KeyboardInterrupt:
        return _INTERRUPTED
    finally:
        working.close()
    if as_json:
        print(json.dumps({"runs": [asdict(outcome) for outcome in outcomes]}, indent=2))
    return max((outcome.code for outcome in outcomes), default=EXIT_DONE)
