"""One of the two nodes: finds out what there is and prints a line of JSON for each fact, after a mark that other output lacks."""

from __future__ import annotations

import faulthandler
import fcntl
import importlib.metadata
import json
import os
import platform
import resource
import shutil
import socket
import struct
import subprocess
import sys
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

from . import files, network, pair

MARK = "GRAFT-DOCTOR "
# Distributions that a run needs on a node; graft itself may come as the snapshot of a job instead.
PACKAGES = ("graft-trainer", "torch", "torchvision", "accelerate", "wandb", "pydantic", "safetensors")
LONGEST = 240.0  # seconds that all of it may take
_SIOCGIFADDR = 0x8915


def versions() -> dict[str, str]:
    """The installed versions of what a run needs, without importing any of it."""
    found = {"python": platform.python_version()}
    for name in PACKAGES:
        try:
            found[name] = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            continue
    return found


def main(settings: dict[str, Any]) -> None:
    """Find out and print everything. `settings`: those of `launcher.doctor.job`."""
    faulthandler.dump_traceback_later(LONGEST, exit=True)  # what hangs is named with its stack
    rank = int(os.environ.get("SLURM_NODEID", "0"))
    folder = Path(settings["folder"])
    both = settings["nodes"] == 2
    interface = settings["interface"]

    def tell(fact: str, find: Callable[[], dict[str, Any]]) -> dict[str, Any]:
        try:
            found = find()
        except Exception as error:  # one thing that fails must not hide the others
            found = {"error": f"{type(error).__name__}: {error}".strip().splitlines()[0][:300]}
        _emit(rank, fact, found)
        return found

    tell("python", lambda: {"executable": sys.executable, "versions": versions()})
    seen = tell("folder", lambda: _folder(folder, settings["nonce"], rank))
    tell("limits", _limits)
    if rank == 0:  # where the job script runs, outside of any container
        tell("slurm", lambda: {"missing": settings["missing"], "refused": settings["refused"]})
    tell("scratch", lambda: _scratch(settings["scratch"]))
    tell("interface", lambda: {"address": address_of(interface), "names": [n for _, n in socket.if_nameindex()]})
    if settings["network"]:
        tell("network", lambda: {s.name: [s.host, network.reach(s.url)] for s in network.servers()})
    together = (
        both
        and tell("meet", lambda: {"seconds": pair.meet(folder, rank, "here", settings["patience"])}).get("seconds") is not None
    )
    if together:
        tell("locks", lambda: pair.locks(folder, rank))
        tell("rename", lambda: pair.rename(folder, rank))
    if "error" not in seen:
        tell("write", lambda: {"speed": files.write_speed(folder)})
        tell("clock", lambda: {"ahead": files.ahead(folder)})
    gpus = tell("gpus", lambda: _gpus(settings["gpus"]))
    if together:
        if interface:
            os.environ.update(NCCL_SOCKET_IFNAME=interface, GLOO_SOCKET_IFNAME=interface)
        address = settings["address"]
        for backend, device in (("gloo", "cpu"), *((("nccl", "cuda"),) if gpus.get("cuda") else ())):
            if rank == 0:
                pair.choose_port(folder, backend)
            if tell(f"ready for {backend}", partial(_ready, folder, rank, backend)).get("seconds") is None:
                break
            tell(backend, partial(_exchange, folder, rank, address, backend, device))
    _emit(rank, "end", {})
    faulthandler.cancel_dump_traceback_later()


def _ready(folder: Path, rank: int, name: str) -> dict[str, Any]:
    """Torch is imported at very different speeds where one node has it in memory and the other has not."""
    return {"seconds": pair.meet(folder, rank, name, 90.0)}


def _exchange(folder: Path, rank: int, address: str, name: str, device: str) -> dict[str, Any]:
    return pair.collective(rank, address, pair.chosen_port(folder, name), device)


def _emit(rank: int, fact: str, found: dict[str, Any]) -> None:
    name = os.environ.get("SLURMD_NODENAME") or socket.gethostname()
    line = json.dumps({"node": name, "rank": rank, "fact": fact, **found})
    sys.stdout.write(f"{MARK}{line}\n")
    sys.stdout.flush()


def _folder(folder: Path, nonce: str, rank: int) -> dict[str, Any]:
    """What the login node wrote is read here; what is written here the login node will look for."""
    if (folder / "nonce").read_text() != nonce:
        return {"error": "another file than the login node's stands there"}
    (folder / f"answer-{rank}").write_text(nonce)
    kind = files.mount(folder)
    return {"kind": kind.kind, "served": kind.served, "locks": files.locks_exclude(folder)}


def _limits() -> dict[str, Any]:
    def soft(limit: int) -> int | None:
        value = resource.getrlimit(limit)[0]
        return None if value == resource.RLIM_INFINITY else value

    return {"files": soft(resource.RLIMIT_NOFILE), "memlock": soft(resource.RLIMIT_MEMLOCK)}


def _scratch(scratch: str) -> dict[str, Any]:
    if not scratch:
        return {}
    folder = Path(scratch)
    if not folder.is_dir():
        return {"error": "it does not exist"}
    return {"free": files.room(folder).free, "speed": files.write_speed(folder, 20, 5.0)}


def address_of(interface: str) -> str:
    """The IPv4 address of a network interface; empty when there is no such interface, or it has none."""
    if not interface:
        return ""
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as handle:
        try:
            reply = fcntl.ioctl(handle.fileno(), _SIOCGIFADDR, struct.pack("256s", interface.encode()[:15]))
        except OSError:
            return ""
    return socket.inet_ntoa(reply[20:24])


def _gpus(asked: int) -> dict[str, Any]:
    """What torch finds, and what the driver says."""
    import torch

    count = torch.cuda.device_count() if torch.cuda.is_available() else 0
    found: dict[str, Any] = {"cuda": count, "torch": torch.__version__, "visible": os.environ.get("CUDA_VISIBLE_DEVICES", "")}
    if count:
        free = [torch.cuda.mem_get_info(n) for n in range(count)]
        found["names"] = sorted({torch.cuda.get_device_name(n) for n in range(count)})
        found["free"], found["total"] = min(f for f, _ in free), min(t for _, t in free)
    if asked and shutil.which("nvidia-smi"):
        words = ["nvidia-smi", "--query-gpu=driver_version", "--format=csv,noheader"]
        done = subprocess.run(words, capture_output=True, text=True, timeout=60, check=False)
        found["driver"] = (done.stdout.split() or [(done.stderr or "nothing").strip()])[0][:100]
    return found
