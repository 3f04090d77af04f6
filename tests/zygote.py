"""Starts trainers as real processes without paying for the imports each time.

A process that has imported torch and the trainer, and done nothing else, forks for every request. The child is a process like any
other: own pid, own files, killed by real signals. Talks JSON lines over its stdin and stdout; `tests.trainers` is the other end.
"""

from __future__ import annotations

import contextlib
import gc
import importlib
import json
import os
import signal
import sys
import time
from typing import Any


def _child(request: dict[str, Any]) -> None:
    os.setsid()
    null = os.open(os.devnull, os.O_RDWR)
    out = os.open(request["output"], os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o644)
    os.dup2(null, 0)
    os.dup2(out, 1)
    os.dup2(out, 2)
    os.environ.update(request["env"])
    os.chdir(request["cwd"])
    sys.argv = ["trainer", *request["argv"]]
    sys.orig_argv[:] = [sys.executable, "-m", "trainer", *request["argv"]]
    from trainer import faultpoints
    from trainer.__main__ import main

    for name, value in request["constants"].items():
        module, constant = name.rsplit(".", 1)
        setattr(importlib.import_module(module), constant, value)
    faultpoints._ARMED = faultpoints._armed()
    code = 1
    try:
        code = main()
    except SystemExit as error:
        code = error.code if isinstance(error.code, int) else 1
    except BaseException:
        import traceback

        traceback.print_exc()
    sys.stdout.flush()
    sys.stderr.flush()
    # As the interpreter does at its end, so that a thread or a worker that is left behind would be seen.
    import multiprocessing.util
    import threading

    multiprocessing.util._exit_function()  # type: ignore[attr-defined]
    threading._shutdown()  # type: ignore[attr-defined]
    os._exit(code)


def _wait(pid: int, timeout: float) -> int | None:
    deadline = time.monotonic() + timeout
    while True:
        found, status = os.waitpid(pid, os.WNOHANG)
        if found:
            return os.waitstatus_to_exitcode(status)
        if time.monotonic() > deadline:
            return None
        time.sleep(0.01)


def serve() -> None:
    import accelerate  # noqa: F401
    import torch.distributed
    import torch.utils.data  # noqa: F401

    import trainer.attempt
    import trainer.runtime
    import trainer.session  # noqa: F401

    gc.freeze()
    print(json.dumps({"ready": True}), flush=True)
    for line in sys.stdin:
        request = json.loads(line)
        answer: dict[str, Any] = {}
        if request["do"] == "start":
            pid = os.fork()
            if pid == 0:
                _child(request)
            answer = {"pid": pid}
        elif request["do"] == "import":  # heavy libraries that only some runs need
            for name in request["names"]:
                importlib.import_module(name)
            gc.freeze()
        elif request["do"] == "wait":
            answer = {"code": _wait(request["pid"], request["timeout"])}
        elif request["do"] == "kill":
            with contextlib.suppress(ProcessLookupError):
                os.killpg(request["pid"], signal.SIGKILL)
        print(json.dumps(answer), flush=True)


if __name__ == "__main__":
    serve()
