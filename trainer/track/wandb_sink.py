"""Mirrors a run to Weights & Biases without training ever noticing.

*Isolation.* wandb lives in a child process (`trainer.track.wandb_worker`); a daemon thread feeds it from a queue. So wandb's exit
hooks, its hold on sys.exit, its import and its waiting are not in the training process, and a server that hangs is ended with the
child when `finish` runs out of time. The child ends within half a second of its parent's death. Whatever fails is one warning.

*Each point once, one run id.* metrics.jsonl is the record; W&B is a mirror of its first n lines, in order. That holds because
- a point is sent only when `commit(step)` says that a checkpoint covers it: it can then not be trained again after a kill
  (points after the last checkpoint are dropped from the record on resume, and logged again);
- line i of the record is row i of the W&B run, so "how many rows are there" is all that anybody must know. An online attempt
  asks the server, and sends every line it lacks before anything new, whatever earlier attempts did. An offline one goes on after
  the rows of the earlier attempts' files: `wandb/cursor.json` has the first row of the latest attempt; how many followed is
  recorded when the attempt ended cleanly, and otherwise counted by reading its own .wandb file back (it is flushed every 15 s,
  the rest is lost in a kill).
- only who holds wandb/server.lock sends: an online attempt, or `graft sync` (see `trainer.track.sync`), which completes the
  server from the record and needs no attempt's file.
The price: curves on W&B advance with the checkpoints. The console and metrics.jsonl are not held back.
Pictures and the confusion matrix travel in the row of their step; for a row that is sent later they are taken from samples/.
"""

from __future__ import annotations

import contextlib
import json
import logging
import os
import queue
import secrets
import subprocess
import sys
import threading
import time
from pathlib import Path
from typing import IO, Any

import psutil

import trainer
from trainer.config import Run
from trainer.config.run import WandB
from trainer.rundir import RunDir, write_atomically

LOG = logging.getLogger("graft.track")
_WORKER = "trainer.track.wandb_worker"


class WandbSink:
    """The W&B mirror of a run; created on the main rank, after the `Record` was opened.

    Inert when `track.wandb` is not set or W&B is disabled. No method raises or waits for wandb, except `finish`, which waits at
    most its timeout.
    """

    def __init__(self, folder: RunDir, run: Run) -> None:
        self._queue: queue.SimpleQueue[dict[str, Any]] = queue.SimpleQueue()
        self._ended = threading.Event()
        self._warned = False
        self._finishing = False
        self._child: subprocess.Popen[bytes] | None = None
        settings = run.track.wandb
        if settings is None or settings.mode == "disabled" or os.environ.get("WANDB_MODE") == "disabled":
            self._ended.set()
            return
        try:
            size = folder.metrics.stat().st_size if folder.metrics.exists() else 0
            start = {"parent": os.getpid(), "bytes": size, **opening(folder, run, settings)}
            log = folder.logs / "wandb.log"
            log.parent.mkdir(parents=True, exist_ok=True)
            threading.Thread(target=self._feed, args=(start, log), name="wandb", daemon=True).start()
        except Exception as error:
            self._give_up(error)

    def log(self, point: dict[str, Any]) -> None:
        """A point of the record, in the order of the record; held back until a checkpoint covers its step."""
        self._put({"op": "log", "point": dict(point)})

    def images(self, key: str, files: list[tuple[Path, str]], point: dict[str, Any]) -> None:
        """Pictures with captions, shown at the point's step. The files may be replaced at the next evaluation."""
        self._put({"op": "images", "key": key, "files": [(str(p), c) for p, c in files], "step": point["step"]})

    def confusion(self, matrix: list[list[int]], classes: list[str], point: dict[str, Any]) -> None:
        """A confusion matrix (rows: truth), shown at the point's step."""
        self._put({"op": "confusion", "matrix": matrix, "classes": list(classes), "step": point["step"]})

    def commit(self, step: int) -> None:
        """A checkpoint of `step` is on disk: every point logged so far up to it is final and is sent."""
        self._put({"op": "commit", "step": step})

    def summary(self, values: dict[str, Any]) -> None:
        """The final values of the run."""
        self._put({"op": "summary", "values": values})

    def finish(self, timeout: float) -> None:
        """Send what is committed and close, within `timeout` seconds.

        Within `track.wandb.timeout` the server has taken it, or it is complete in the local folder; give that twice (the start
        may still be waiting for the server) and a few seconds more.
        """
        if self._ended.is_set():
            return
        self._finishing = True
        self._put({"op": "finish", "timeout": max(0.5, timeout - 1.0)})
        if not self._ended.wait(timeout):
            self._warn(f"W&B did not finish within {timeout:g} s; what is missing there stays in the run's folder wandb/")
            kill(self._child)
            self._ended.set()

    def _put(self, message: dict[str, Any]) -> None:
        if not self._ended.is_set():
            self._queue.put(message)

    def _feed(self, start: dict[str, Any], log: Path) -> None:
        try:
            with log.open("ab") as errors:
                command, pipe = [sys.executable, "-m", _WORKER], subprocess.PIPE
                environment = child_environment(Path(start["folder"]))
                self._child = subprocess.Popen(command, stdin=pipe, stdout=pipe, stderr=errors, env=environment)
            assert self._child.stdin is not None
            assert self._child.stdout is not None
            threading.Thread(target=self._listen, args=(self._child, self._child.stdout), name="wandb-out", daemon=True).start()
            message = start
            while True:
                self._child.stdin.write(json.dumps(message, default=_plain).encode() + b"\n")
                self._child.stdin.flush()
                if message.get("op") == "finish":
                    return
                message = self._queue.get()
        except Exception as error:
            self._give_up(error)
        finally:
            if self._child is not None and self._child.stdin is not None:
                with contextlib.suppress(OSError):
                    self._child.stdin.close()

    def _listen(self, child: subprocess.Popen[bytes], lines: IO[bytes]) -> None:
        try:
            for line in lines:
                said = json.loads(line)
                if said["level"] == "warning":
                    self._warn(said["text"])
                else:
                    LOG.info("%s", said["text"])
            code = child.wait()
            if code != 0 and not self._ended.is_set():
                self._warn(f"W&B stopped (its process ended with {code}); the run goes on without it, see log/wandb.log")
        except Exception as error:
            self._give_up(error)
        finally:
            lines.close()
            self._ended.set()
            self._queue.put({"op": "finish"})  # wakes the feeding thread, which finds the pipe broken and ends

    def _warn(self, text: str) -> None:
        if not self._warned:
            self._warned = True
            LOG.warning("%s", text)

    def _give_up(self, error: Exception) -> None:
        if not self._finishing and not self._ended.is_set():
            time.sleep(0 if self._child is None else 0.2)  # lets the child's own message come first
            self._warn(f"W&B is off for this attempt: {error or type(error).__name__}")
        self._ended.set()
        kill(self._child)


def opening(folder: RunDir, run: Run, settings: WandB) -> dict[str, Any]:
    """What a process needs to open the W&B run."""
    return {
        "folder": str(folder.path), "id": _run_id(folder.path / "wandb"), "name": run.name,
        "settings": settings.model_dump(mode="json"), "config": run.model_dump(mode="json"),
    }  # fmt: skip


def _run_id(folder: Path) -> str:
    """The W&B run id of all attempts, made once."""
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / "id"
    if not path.exists():
        write_atomically(path, secrets.token_hex(8) + "\n")
    return path.read_text(encoding="ascii").strip()


def child_environment(folder: Path) -> dict[str, str]:
    """The environment of a process that talks to wandb about the run in `folder`."""
    root = str(Path(trainer.__file__).resolve().parent.parent)
    env = {k: v for k, v in os.environ.items() if k not in ("WANDB_SERVICE", "WANDB_RUN_ID", "WANDB_RESUME", "WANDB_DIR")}
    path = os.pathsep.join([root, *filter(None, [env.get("PYTHONPATH")])])
    data = str(folder / "wandb" / "data")  # else wandb leaves files in the user's home
    quiet = {"WANDB_ERROR_REPORTING": "false", "WANDB_SILENT": "true", "OMP_NUM_THREADS": "1"}
    return env | quiet | {"PYTHONPATH": path, "WANDB_DATA_DIR": data}


def _plain(value: Any) -> Any:
    """Numbers of numpy and torch as Python's own."""
    return value.item() if hasattr(value, "item") else str(value)


def kill(child: subprocess.Popen[bytes] | None) -> None:
    """End the child and wandb's own service process, which sits in a session of its own."""
    if child is None or child.poll() is not None:
        return
    doomed: list[psutil.Process | subprocess.Popen[bytes]] = [child]
    with contextlib.suppress(psutil.Error):  # it may have ended by itself
        doomed = [*psutil.Process(child.pid).children(recursive=True), child]
    for process in doomed:
        try:
            process.kill()
        except (psutil.Error, OSError):
            continue
    child.wait()
