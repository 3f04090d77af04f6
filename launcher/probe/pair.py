"""What one node does together with the other: they meet in the folder, lock, rename, and exchange numbers over the network."""

from __future__ import annotations

import os
import socket
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from . import files

PATIENCE = 30.0  # seconds; an NFS client may look at a folder again only after that long
_MESSAGE = 64 * files.MEGABYTE
_ROUNDS = 3


def wait_for(seen: Callable[[], bool], folder: Path, patience: float = PATIENCE) -> float | None:
    """Seconds until something is seen in a folder of a file server; none when it is not."""
    begun = time.monotonic()
    while True:
        os.listdir(folder)  # makes an NFS client ask the server again  # noqa: PTH208
        if seen():
            return time.monotonic() - begun
        if time.monotonic() - begun > patience:
            return None
        time.sleep(0.05)


def meet(folder: Path, rank: int, name: str, patience: float = PATIENCE) -> float | None:
    """Wait until both nodes have come to this point; seconds until the other's file was seen here, none when it was not."""
    (folder / f"{name}-{rank}").touch()
    return wait_for((folder / f"{name}-{1 - rank}").exists, folder, patience)


def locks(folder: Path, rank: int) -> dict[str, Any]:
    """Rank 0 holds a lock, rank 1 must not get it, and must get it once it is free."""
    path = folder / "lock"
    if rank == 0:
        handle = files.lock(path)
        if handle is None:
            return {"error": "a lock that nobody holds is refused"}
        try:
            met = meet(folder, rank, "held")
            tried = wait_for((folder / "tried").exists, folder)
        finally:
            files.unlock(handle)
        (folder / "let-go").touch()
        return {} if met is not None and tried is not None else {"error": "the other node did not try"}
    if meet(folder, rank, "held") is None:
        return {"error": "the other node did not take it"}
    try:
        handle = files.lock(path)
    finally:
        (folder / "tried").touch()
    if handle is not None:
        files.unlock(handle)
        return {"excludes": False}
    wait_for((folder / "let-go").exists, folder)
    freed: list[int] = []

    def take() -> bool:
        got = files.lock(path)
        freed.extend([] if got is None else [got])
        return got is not None

    if wait_for(take, folder, 10.0) is None:
        return {"error": "it is not given back"}
    files.unlock(freed[0])
    return {"excludes": True}


def rename(folder: Path, rank: int) -> dict[str, Any]:
    """Rank 0 replaces a file that rank 1 has read; seconds until rank 1 reads the new one, nothing torn or missing between."""
    path = folder / "renamed"
    if rank == 0:
        path.write_text("old")
    if meet(folder, rank, "written") is None:
        return {"error": "the nodes did not meet"}
    if rank == 1:
        path.read_text()
    meet(folder, rank, "read")
    if rank == 0:
        new = folder / "renamed.new"
        new.write_text("new")
        new.rename(path)
        return {}
    seen: set[str] = set()

    def changed() -> bool:
        seen.add(path.read_text())
        return "new" in seen

    after = wait_for(changed, folder)
    return {"seconds": after, "torn": sorted(seen - {"old", "new"})}


def choose_port(folder: Path, name: str) -> None:
    """Rank 0 writes down a port that is free on its host, before the two `meet`."""
    with socket.socket() as one:
        one.bind(("", 0))
        (folder / f"port-{name}").write_text(str(one.getsockname()[1]))


def chosen_port(folder: Path, name: str) -> int:
    return int((folder / f"port-{name}").read_text())


def collective(rank: int, address: str, port: int, device: str) -> dict[str, Any]:
    """An all-reduce between the two nodes, over gloo (`cpu`) or NCCL (`cuda`): MB/s of a large message, and the clocks."""
    from datetime import timedelta

    import torch
    import torch.distributed as dist

    backend = "nccl" if device == "cuda" else "gloo"
    dist.init_process_group(
        backend, init_method=f"tcp://{address}:{port}", rank=rank, world_size=2, timeout=timedelta(seconds=60)
    )
    try:
        message = torch.full((_MESSAGE // 4,), float(rank + 1), device=device)
        dist.all_reduce(message)
        if not bool((message == 3.0).all()):
            return {"error": "the sum over both nodes is wrong"}
        spent = []
        for _ in range(_ROUNDS):
            dist.barrier()
            begun = time.perf_counter()
            dist.all_reduce(message)
            if device == "cuda":
                torch.cuda.synchronize()
            spent.append(time.perf_counter() - begun)
        times = [torch.zeros(1, dtype=torch.float64, device=device) for _ in range(2)]
        dist.barrier()
        dist.all_gather(times, torch.tensor([time.time()], dtype=torch.float64, device=device))
        return {"speed": _MESSAGE / files.MEGABYTE / min(spent), "apart": abs(times[0].item() - times[1].item())}
    finally:
        dist.destroy_process_group()
