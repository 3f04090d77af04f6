"""The child process of an attempt that talks to wandb; see `wandb_sink`. Reads JSON messages, one a line."""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import sys
import threading
import traceback
from pathlib import Path
from typing import IO, Any

from trainer.rundir import RunDir
from trainer.track.child import begin, end, lock, tell
from trainer.track.cursor import Cursor
from trainer.track.mirror import Mirror, open_run
from trainer.track.server import api_key

_PATIENCE = 10.0  # seconds: the worker of a killed attempt, or a round of `graft sync`, needs a moment to go


def _known(path: Path, size: int) -> list[dict[str, Any]]:
    """The points of the record when the attempt began: its first `size` bytes, which a checkpoint covers."""
    if size == 0:
        return []
    with path.open("rb") as file:
        lines = file.read(size).splitlines()
    return [json.loads(line) for line in lines]


class AttemptMirror(Mirror):
    """The W&B run of an attempt: online where that can be had, else offline in the run's folder."""

    def __init__(self, start: dict[str, Any]) -> None:
        self._start = start
        self._talks: IO[str] | None = None  # held while this process may send to the server
        folder = RunDir(Path(start["folder"]))
        self._wandb = folder.path / "wandb"
        self._cursor = Cursor(self._wandb)
        known = _known(folder.metrics, start["bytes"])
        run = self._open()
        online = not run.offline
        rows = self._cursor.begin(Path(run.dir).parent, online=online, server=run.starting_step if online else 0)
        super().__init__(folder, run, rows)
        self.catch_up(known)

    def _open(self) -> Any:
        import wandb

        wanted = self._start["settings"]["mode"]
        if wanted == "auto":
            wanted = {"offline": "offline", "dryrun": "offline"}.get(os.environ.get("WANDB_MODE", ""), "online")
        url = ""
        if wanted == "online":
            url = wandb.setup().settings.base_url
            if api_key(url) is None:
                tell("info", "W&B: no API key, so the run is recorded offline in wandb/; send it later with `graft sync`")
                wanted = "offline"
        if wanted == "online":
            try:
                self._talks = lock(self._wandb / "server.lock", _PATIENCE)
            except OSError:
                tell("warning", "W&B: `graft sync` is sending this run, so the attempt is recorded offline in wandb/")
                wanted = "offline"
        if wanted == "online":
            before = set(self._wandb.glob("run-*"))
            try:
                run = self._init("online")
            except Exception as error:
                wandb.teardown()
                for left in set(self._wandb.glob("run-*")) - before:
                    shutil.rmtree(left, ignore_errors=True)
                text = " ".join(str(error).split())[:200]
                tell("warning", f"W&B at {url} cannot be used ({text}); the run is recorded offline in wandb/, for `graft sync`")
            else:
                tell("info", f"W&B: {run.url}")
                return run
        if self._talks is not None:
            self._talks.close()
        return self._init("offline")

    def _init(self, mode: str) -> Any:
        return open_run(self._start, mode, self._wandb.parent, self._start["settings"]["timeout"])

    def finish(self, timeout: float) -> None:
        """Close the run. What the server does not take in time is sent by the next attempt, or by `graft sync`."""
        import wandb

        late = threading.Timer(timeout, _too_late)
        late.daemon = True
        late.start()
        complete = True
        try:
            self._run.finish()
        except TimeoutError:
            complete = False
        wandb.teardown()  # waits until the files are written, which finish does not
        if not complete:
            _too_late()
        self._cursor.end(self.next)
        late.cancel()


def _too_late() -> None:
    tell("warning", "W&B did not take everything in time; `graft sync` sends the rest")
    end(0)


def main() -> None:
    lines = sys.stdin.buffer
    start = json.loads(lines.readline())
    begin(start["parent"])
    alone = lock(Path(start["folder"]) / "wandb" / "lock", _PATIENCE)
    mirror = AttemptMirror(start)
    for line in lines:
        message = json.loads(line)
        op = message.pop("op")
        try:
            getattr(mirror, op)(**message)
        except Exception as error:
            if op not in ("images", "confusion"):
                raise
            tell("warning", f"W&B: {op} of step {message['step']} left out: {error}")
        if op == "finish":
            break
    alone.close()
    end(0)


if __name__ == "__main__":
    try:
        main()
    except Exception as error:
        traceback.print_exc()
        with contextlib.suppress(OSError):
            tell("warning", f"W&B is off for this attempt: {type(error).__name__}: {' '.join(str(error).split())[:300]}")
        end(0)
