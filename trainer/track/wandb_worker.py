"""The child process that talks to wandb; see `wandb_sink`. Reads JSON messages, one a line, and answers with what to tell."""

from __future__ import annotations

import contextlib
import fcntl
import json
import math
import os
import shutil
import signal
import sys
import threading
import time
import traceback
from io import BytesIO
from netrc import NetrcParseError, netrc
from pathlib import Path
from typing import IO, Any
from urllib.parse import urlsplit

import psutil

from trainer.track.cursor import Cursor
from trainer.track.picture import draw_confusion
from trainer.track.redact import redact

_OUT = 1


def tell(level: str, text: str) -> None:
    """A line for the training process to log."""
    os.write(_OUT, json.dumps({"level": level, "text": text}).encode() + b"\n")


def _claim_stdout() -> None:
    """Keep the pipe to the training process for `tell`; what libraries print goes to the log."""
    global _OUT
    _OUT = os.dup(1)
    os.dup2(2, 1)


def _end_with(parent: int) -> None:
    """End this process and wandb's service as soon as the training process is gone: the next attempt must find nobody here."""
    while os.getppid() == parent:
        time.sleep(0.2)
    _end(0)


def _end(code: int) -> None:
    for process in psutil.Process().children(recursive=True):
        process.kill()
    os._exit(code)


def _lock(folder: Path, patience: float = 10.0) -> IO[str]:
    """Only one worker writes to the folder; one of a killed attempt needs a moment to go."""
    file = (folder / "lock").open("a")
    deadline = time.monotonic() + patience
    while True:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            if time.monotonic() > deadline:
                raise
            time.sleep(0.1)
        else:
            return file


def has_key(base_url: str) -> bool:
    """Whether there is an API key for the server: in WANDB_API_KEY or in the netrc file, as wandb looks for it."""
    if os.environ.get("WANDB_API_KEY"):
        return True
    for name in (os.environ.get("NETRC"), "~/.netrc", "~/_netrc"):
        if name and (path := Path(name).expanduser()).is_file():
            try:
                return netrc(str(path)).authenticators(urlsplit(base_url).hostname or "") is not None
            except (NetrcParseError, OSError):
                return False
    return False


def _known(path: Path, size: int) -> list[dict[str, Any]]:
    """The points of the record when the attempt began: its first `size` bytes, which a checkpoint covers."""
    if size == 0:
        return []
    with path.open("rb") as file:
        lines = file.read(size).splitlines()
    return [json.loads(line) for line in lines]


class Mirror:
    """The open W&B run and the points that wait for a checkpoint."""

    def __init__(self, start: dict[str, Any]) -> None:
        self._folder = Path(start["folder"])
        self._start = start
        self._cursor = Cursor(self._folder / "wandb")
        self._held: list[tuple[int, dict[str, Any]]] = []
        self._extras: dict[int, dict[str, Any]] = {}
        known = _known(self._folder / "metrics.jsonl", start["bytes"])
        self._run = self._open()
        online = not self._run.offline
        self._next = self._cursor.begin(
            Path(self._run.dir).parent, online=online, server=self._run.starting_step if online else 0
        )
        self._seen = 0
        for point in known:
            self.log(point)
        self._send(math.inf)

    def _open(self) -> Any:
        import wandb

        wanted = self._start["settings"]["mode"]
        if wanted == "auto":
            wanted = {"offline": "offline", "dryrun": "offline"}.get(os.environ.get("WANDB_MODE", ""), "online")
        if wanted == "online":
            url = wandb.setup().settings.base_url
            if not has_key(url):
                tell("info", "W&B: no API key, so the run is recorded offline in wandb/; send it later with `wandb sync`")
                wanted = "offline"
        if wanted == "online":
            before = set((self._folder / "wandb").glob("run-*"))
            try:
                run = self._init("online")
            except Exception as error:
                wandb.teardown()
                for left in set((self._folder / "wandb").glob("run-*")) - before:
                    shutil.rmtree(left, ignore_errors=True)
                text = " ".join(str(error).split())[:200]
                tell("warning", f"W&B at {url} cannot be used ({text}); the run is recorded offline in wandb/")
            else:
                tell("info", f"W&B: {run.url}")
                return run
        return self._init("offline")

    def _init(self, mode: Any) -> Any:
        import wandb

        asked = self._start["settings"]
        quiet = wandb.Settings(
            silent=True, console="off", disable_code=True, save_code=False, disable_git=True, disable_job_creation=True,
            x_disable_stats=True, x_disable_meta=True, x_disable_machine_info=True,
            init_timeout=asked["timeout"], finish_timeout=asked["timeout"], finish_timeout_raises=True,
        )  # fmt: skip
        run = wandb.init(
            id=self._start["id"], resume="allow", dir=str(self._folder), name=self._start["name"], mode=mode,
            config=redact(self._start["config"]), project=asked["project"], entity=asked["entity"], group=asked["group"],
            tags=asked["tags"], settings=quiet,
        )  # fmt: skip
        run.define_metric("samples")
        run.define_metric("*", step_metric="samples")
        return run

    def log(self, point: dict[str, Any]) -> None:
        """Hold a point, unless an earlier attempt sent this line of the record."""
        if self._seen >= self._next:
            self._held.append((int(point.get("step", 0)), point))
        self._seen += 1

    def images(self, key: str, files: list[tuple[str, str]], step: int) -> None:
        import wandb
        from PIL import Image

        pictures = []
        for name, caption in files:
            with Image.open(BytesIO(Path(name).read_bytes())) as image:
                pictures.append(wandb.Image(image.copy(), caption=caption))
        self._extras.setdefault(step, {})[key] = pictures

    def confusion(self, matrix: list[list[int]], classes: list[str], step: int) -> None:
        """As a picture: a table would be an artifact, which asks the server in mid-run and can fail the whole row."""
        import wandb

        self._extras.setdefault(step, {})["val/confusion"] = wandb.Image(draw_confusion(matrix, classes))

    def commit(self, step: int) -> None:
        self._send(step)

    def summary(self, values: dict[str, Any]) -> None:
        self._run.summary.update(values)

    def finish(self, timeout: float) -> None:
        """Close the run. What the server does not take in time is left to the files; it is asked again by the next attempt."""
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
        self._cursor.end(self._next)
        late.cancel()

    def _send(self, step: float) -> None:
        """Log the held points up to a step, in order; pictures go with the last of their step."""
        ready = [point for at, point in self._held if at <= step]
        last = {int(point.get("step", 0)): index for index, point in enumerate(ready)}
        self._held = [held for held in self._held if held[0] > step]
        for index, point in enumerate(ready):
            at = int(point.get("step", 0))
            row = {k: v for k, v in point.items() if v is not None and not (isinstance(v, float) and not math.isfinite(v))}
            if last[at] == index:
                row |= self._extras.pop(at, {})
            self._run.log(row)
            self._next += 1
        self._extras = {at: extra for at, extra in self._extras.items() if at > step}


def _too_late() -> None:
    tell("warning", "W&B did not take everything in time; `wandb sync` on the run's folder wandb/ sends the rest")
    _end(0)


def main() -> None:
    for ignored in (signal.SIGINT, signal.SIGTERM, signal.SIGUSR1, signal.SIGHUP):
        signal.signal(ignored, signal.SIG_IGN)  # the training process decides when to finish
    _claim_stdout()
    lines = sys.stdin.buffer
    start = json.loads(lines.readline())
    threading.Thread(target=_end_with, args=(start["parent"],), daemon=True).start()
    lock = _lock(Path(start["folder"]) / "wandb")
    mirror = Mirror(start)
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
    lock.close()
    _end(0)


if __name__ == "__main__":
    try:
        main()
    except Exception as error:
        traceback.print_exc()
        with contextlib.suppress(OSError):
            tell("warning", f"W&B is off for this attempt: {type(error).__name__}: {' '.join(str(error).split())[:300]}")
        _end(0)
