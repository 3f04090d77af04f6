"""The process of `graft sync` that talks to wandb: a run a line comes in, what became of it a line goes out; see `sync`."""

from __future__ import annotations

import json
import math
import shutil
import sys
import time
import traceback
from pathlib import Path
from typing import Any

from trainer.config import GraftError
from trainer.rundir import RunDir, read_points
from trainer.track.child import begin, end, lock, say, tell
from trainer.track.mirror import Mirror, open_run
from trainer.track.server import Known, Server

ROWS_A_SECOND = 200  # slower than any server seen; a bound, not an estimate
_PATIENCE = 2.0  # seconds: the process of a killed sync needs a moment to go


def _has(known: Known, rows: int, summary: dict[str, Any]) -> bool:
    """Whether the server has that many rows and these values."""

    def same(key: str, value: Any) -> bool:
        found = known.summary.get(key)
        if isinstance(found, int | float) and isinstance(value, int | float):
            return math.isclose(found, value, rel_tol=1e-9)
        return bool(found == value)

    return known.rows >= rows and all(same(key, value) for key, value in summary.items())


def _files(request: dict[str, Any]) -> Path:
    """Where wandb's own files go meanwhile; they are of no use afterwards, since the record has everything."""
    return Path(request["folder"]) / "wandb" / "sync"


def send(server: Server, request: dict[str, Any]) -> dict[str, Any]:
    """Complete the server's copy of a run; returns its `state` (complete, partial, online), `rows`, `sent` and `url`.

    Raises GraftError when the server cannot be used.
    """
    settings, rows, summary = request["settings"], request["points"], request["summary"]
    known = server.known(settings, request["id"], settings["timeout"])
    if _has(known, rows, summary):
        shutil.rmtree(_files(request), ignore_errors=True)  # what a sync that was killed left
        return {"state": "complete", "rows": known.rows, "sent": 0}
    folder = RunDir(Path(request["folder"]))
    try:
        talks = lock(folder.path / "wandb" / "server.lock", _PATIENCE)
    except OSError:
        return {"state": "online", "rows": known.rows, "sent": 0}
    with talks:
        tell("info", f"sending {max(0, rows - known.rows):,} rows")
        url = _send(folder, request)
        before, deadline = known.rows, time.monotonic() + settings["timeout"]
        while not _has(known := server.known(settings, request["id"], settings["timeout"]), rows, summary):
            if time.monotonic() > deadline:
                return {"state": "partial", "rows": known.rows, "sent": max(0, known.rows - before), "url": url}
            time.sleep(0.5)
    return {"state": "complete", "rows": known.rows, "sent": max(0, known.rows - before), "url": url}


def _send(folder: RunDir, request: dict[str, Any]) -> str | None:
    import wandb

    rows: int = request["points"]
    files = _files(request)
    shutil.rmtree(files, ignore_errors=True)
    files.mkdir(parents=True)
    try:
        run = open_run(request, "online", files, request["settings"]["timeout"] + rows / ROWS_A_SECOND)
        mirror = Mirror(folder, run, run.starting_step)
        mirror.catch_up(read_points(folder.metrics)[:rows])
        mirror.summary(request["summary"])
        url: str | None = run.url
        try:
            run.finish()
        except TimeoutError:
            tell("info", "the server is slow")
    except Exception as error:
        raise GraftError(" ".join(str(error).split())[:200] or type(error).__name__) from error
    finally:
        wandb.teardown()
        shutil.rmtree(files, ignore_errors=True)
    return url


def main() -> None:
    begin(int(sys.argv[1]))
    import wandb

    server: Server | None = None
    for line in sys.stdin.buffer:
        try:
            server = server or Server(wandb.setup().settings.base_url)
            answer = send(server, json.loads(line))
        except GraftError as error:
            answer = {"state": "failed", "reason": str(error), "code": error.code}
        except Exception as error:
            traceback.print_exc()
            reason = " ".join(f"{type(error).__name__}: {error}".split())[:300]
            answer = {"state": "failed", "reason": reason, "code": GraftError.code}
        say(**answer)
    end(0)


if __name__ == "__main__":
    main()
