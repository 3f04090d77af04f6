"""A short look at a node before it trains: the run folder, memory, its GPUs, and whether the nodes reach each other.

It runs in the process that then becomes `accelerate launch`, which imports torch anyway; here it is imported late, so that the
commands do not wait for it.
"""

from __future__ import annotations

import contextlib
import fcntl
import json
import multiprocessing
import shutil
import tempfile
import time
from datetime import timedelta
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

GPU_WITHIN = 60.0  # seconds for all GPUs of a node: a first CUDA context takes some, a driver that hangs takes for ever
FREE_SHARE = 0.8  # of a GPU's memory; less means that a process of somebody else sits on it
LEAST_MEMORY = 1 << 30  # bytes free on the host
LEAST_DISK = 100 << 20  # bytes free where the run folder is


class PortTakenError(Exception):
    """Another program listens at the port for the meeting; no fault of the node."""


def check_node(folder: Path, *, gpus: int) -> list[str]:
    """What is wrong with this node, in sentences; `gpus` must be visible and work. Takes well under a second without GPUs."""
    return [*_folder(folder), *_memory(), *(_gpus(gpus) if gpus else [])]


def _folder(folder: Path) -> list[str]:
    if not (folder / "run.yaml").is_file():
        return [f"the run folder {folder} is not there: is its file system mounted on this node?"]
    try:
        with tempfile.NamedTemporaryFile(dir=folder, prefix=".check-") as file:
            file.write(b"x")
            file.flush()
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError as error:
        return [f"the run folder {folder} cannot be written and locked: {error.strerror}"]
    free = shutil.disk_usage(folder).free
    return [f"the file system of {folder} is full: {free >> 20} MiB are free"] if free < LEAST_DISK else []


def _memory() -> list[str]:
    import psutil

    free = psutil.virtual_memory().available
    return [f"{free >> 20} MiB of memory are free: what else runs here?"] if free < LEAST_MEMORY else []


def _gpus(count: int) -> list[str]:
    """Looked at in a child: no CUDA context stays in this process, and a driver that hangs is a problem with a name."""
    mine, its = multiprocessing.Pipe(duplex=False)
    child = multiprocessing.get_context("fork").Process(target=_look_at_gpus, args=(count, its), daemon=True)
    child.start()
    its.close()
    found: list[str] | None = None
    with contextlib.suppress(EOFError):
        hangs = [f"the GPUs did not answer within {GPU_WITHIN:.0f} s: the driver hangs"]
        found = mine.recv() if mine.poll(GPU_WITHIN) else hangs
    child.kill()  # one that hangs in the driver cannot be waited for
    child.join(timeout=2)
    return [f"the look at the GPUs crashed (exit code {child.exitcode})"] if found is None else found


def _look_at_gpus(count: int, answer: Connection) -> None:
    import torch

    problems = []
    try:
        there = torch.cuda.device_count()
        if there < count:
            problems.append(f"{there} GPUs are visible and {count} were granted")
        for device in range(min(there, count)):
            problems += _gpu(device)
    except Exception as error:
        problems.append(f"CUDA does not start: {(str(error).splitlines() or [type(error).__name__])[0]}")
    answer.send(problems)


def _gpu(device: int) -> list[str]:
    import torch

    try:
        free, total = torch.cuda.mem_get_info(device)
        if free < FREE_SHARE * total:
            return [f"GPU {device} has {free >> 20} of {total >> 20} MiB free: another process sits on it"]
        # whole numbers that float32 holds exactly: any other result is broken arithmetic or memory
        numbers = torch.arange(256 * 256, device=f"cuda:{device}", dtype=torch.float32).reshape(256, 256) % 7
        expected = numbers.cpu().double() @ numbers.cpu().double()
        if not torch.equal((numbers @ numbers).cpu().double(), expected):
            return [f"GPU {device} multiplies wrongly"]
    except Exception as error:
        return [f"GPU {device}: {(str(error).splitlines() or [type(error).__name__])[0]}"]
    return []


def meet(name: str, *, nodes: list[str], index: int, address: str, port: int, timeout: float) -> list[str]:
    """One process a node: all sign in at the first one and add numbers up. Returns the nodes that did not, none when all is well.

    `name` is this start's own: another job's nodes, should they have the same port, do not count.

    Every node that reaches the first one gets its answer, in at most about twice `timeout` seconds. One that does not names the
    first: were it to blame itself, the first would have named it by then and ended the job. Raises PortTakenError on the first.
    """
    import torch
    import torch.distributed

    dist: Any = torch.distributed  # its stores and groups have no types
    deadline = time.monotonic() + timeout
    # the first node gives up first: the others must still be there for its answer
    limit = timedelta(seconds=timeout if index == 0 else 2 * timeout + 5)
    try:
        store = dist.TCPStore(address, port, world_size=None, is_master=index == 0, timeout=limit, wait_for_workers=False)
        store = dist.PrefixStore(name, store)
        store.set(f"here-{index}", nodes[index])
        absent = _signed_in(store, nodes, index, deadline)
        if absent:
            return absent
        group = dist.ProcessGroupGloo(dist.PrefixStore("meet", store), index, len(nodes), limit)
        numbers = torch.full((1024,), float(index + 1))
        group.allreduce([numbers]).wait(limit)
        wrong = bool((numbers != len(nodes) * (len(nodes) + 1) / 2).any())
        store.set(f"sum-{index}", "wrong" if wrong else "right")
        wrongs = [
            node for i, node in enumerate(nodes) if not _has(store, f"sum-{i}", deadline) or store.get(f"sum-{i}") == b"wrong"
        ]
        _leave(store, len(nodes), index)
    except RuntimeError as error:  # torch has no type of its own for a peer that does not answer
        if index == 0 and "EADDRINUSE" in str(error):
            raise PortTakenError from None
        print(f"graft: {nodes[index]}: {(str(error).splitlines() or ['no message'])[0]}", flush=True)
        return [nodes[0]]
    return wrongs


def _signed_in(store: Any, nodes: list[str], index: int, deadline: float) -> list[str]:
    """The first node waits for the others, and tells them who is missing: all have one answer."""
    if index == 0:
        absent = [node for i, node in enumerate(nodes) if not _has(store, f"here-{i}", deadline)]
        store.set("absent", json.dumps(absent))
        if absent:
            time.sleep(1.0)  # the others read it before the store goes with this process
        return absent
    found: list[str] = json.loads(store.get("absent"))
    return found


def _has(store: Any, key: str, deadline: float) -> bool:
    while not store.check([key]):
        if time.monotonic() > deadline:
            return False
        time.sleep(0.05)
    return True


def _leave(store: Any, count: int, index: int) -> None:
    """The first node, in whose process the store lives, goes last."""
    store.set(f"left-{index}", "")
    if index == 0:
        deadline = time.monotonic() + 5
        for other in range(1, count):
            _has(store, f"left-{other}", deadline)
