"""A folder's file system, measured: its kind, room, speed, locks and renames."""

from __future__ import annotations

import contextlib
import fcntl
import os
import re
import secrets
import statistics
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

MOUNTS = Path("/proc/self/mounts")
MEGABYTE = 10**6
_SERVED = re.compile(r"nfs|lustre|gpfs|beegfs|ceph|cifs|smb|9p|virtiofs|glusterfs|pvfs|orangefs|panfs|wekafs|afs|daos|fuse\.\w+")
_IN_MEMORY = {"tmpfs", "ramfs"}


@dataclass(frozen=True)
class Mount:
    """Where a path is mounted: type as the kernel names it, mount point, options."""

    kind: str
    point: str
    options: str

    @property
    def served(self) -> bool:
        """Whether other hosts can see the same files, going by the type."""
        return bool(_SERVED.match(self.kind))

    @property
    def in_memory(self) -> bool:
        return self.kind in _IN_MEMORY


def mount(path: Path, mounts: Path = MOUNTS) -> Mount:
    """The mount that holds a path. OSError when the list of mounts cannot be read."""
    path = path.resolve()
    best = Mount("unknown", "", "")
    for line in mounts.read_text(encoding="utf-8", errors="surrogateescape").splitlines():
        words = line.split(" ")
        if len(words) < 4:
            continue
        point = re.sub(r"\\([0-7]{3})", lambda m: chr(int(m[1], 8)), words[1])  # a space is written \040
        if (path == Path(point) or Path(point) in path.parents) and len(point) >= len(best.point):
            best = Mount(words[2], point, words[3])
    return best


@dataclass(frozen=True)
class Room:
    """Bytes and files that can still be written; `files` is none where the file system does not count them."""

    free: int
    files: int | None


def room(folder: Path) -> Room:
    """What an ordinary user can still write."""
    said = os.statvfs(folder)
    return Room(said.f_bavail * said.f_frsize, said.f_favail if said.f_files else None)


@contextlib.contextmanager
def _scratch(folder: Path) -> Iterator[Path]:
    path = folder / f".graft-{secrets.token_hex(6)}"
    try:
        yield path
    finally:
        path.unlink(missing_ok=True)


def write_speed(folder: Path, megabytes: int = 100, limit: float = 10.0) -> float:
    """MB/s of one file of that size with its fsync; stops writing after `limit` seconds. OSError when it cannot be written."""
    block = os.urandom(4 * MEGABYTE)  # nothing that a file system could compress
    with _scratch(folder) as path, path.open("xb", buffering=0) as file:
        begun, written = time.perf_counter(), 0
        while written < megabytes * MEGABYTE and time.perf_counter() - begun < limit:
            written += file.write(block)
        os.fsync(file.fileno())
        return written / MEGABYTE / max(time.perf_counter() - begun, 1e-9)


def latency(folder: Path, times: int = 20, limit: float = 10.0) -> float:
    """Milliseconds (median) to write a small file so that a crash cannot tear it: create, fsync, rename, fsync of the folder."""
    taken: list[float] = []
    until = time.perf_counter() + limit
    handle = os.open(folder, os.O_RDONLY)
    try:
        with _scratch(folder) as path, _scratch(folder) as target:
            while len(taken) < times and time.perf_counter() < until:
                begun = time.perf_counter()
                with path.open("xb") as file:
                    file.write(b"graft")
                    file.flush()
                    os.fsync(file.fileno())
                path.rename(target)
                os.fsync(handle)
                taken.append((time.perf_counter() - begun) * 1000)
    finally:
        os.close(handle)
    return statistics.median(taken)


def lock(path: Path) -> int | None:
    """Take the exclusive lock on a file and return its handle; none while another holds it.

    OSError where the file system has no locks.
    """
    handle = os.open(path, os.O_RDWR | os.O_CREAT, 0o644)
    try:
        fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        os.close(handle)
        return None
    except OSError:
        os.close(handle)
        raise
    return handle


def unlock(handle: int) -> None:
    os.close(handle)  # which gives the lock back


def locks_exclude(folder: Path) -> bool:
    """Whether a second opening of a locked file is refused, and served once the first has let go. OSError without locks."""
    with _scratch(folder) as path:
        first = lock(path)
        if first is None:
            return False
        second = lock(path)
        unlock(first)
        if second is not None:
            unlock(second)
            return False
        third = lock(path)
        if third is None:
            return False
        unlock(third)
        return True


def rename_replaces(folder: Path) -> bool:
    """Whether a rename puts a new file in place of an old one, and leaves whoever reads the old one undisturbed."""
    with _scratch(folder) as old, _scratch(folder) as new:
        old.write_text("old")
        new.write_text("new")
        with old.open() as reader:
            new.rename(old)
            return reader.read() == "old" and old.read_text() == "new" and not new.exists()


def ahead(folder: Path) -> float:
    """Seconds by which the clock of the file server (which stamps the files) is ahead of this host's."""
    with _scratch(folder) as path:
        before = time.time()
        with path.open("xb") as file:
            file.write(b"graft")
            file.flush()
            os.fsync(file.fileno())
        after = time.time()
        stamp = path.stat().st_mtime
    # The kernel stamps with the time of its last tick, a few milliseconds back.
    return stamp - before if stamp < before - 0.02 else stamp - after if stamp > after else 0.0
