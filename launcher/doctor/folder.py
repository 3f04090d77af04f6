"""The run folder's file system as the login node sees it, and the servers outside."""

from __future__ import annotations

import errno
from collections.abc import Iterator
from pathlib import Path

from launcher.doctor.check import Check, failed, ok, size, warning
from launcher.probe import files, network

_LITTLE, _NOTHING = 20e9, 1e9  # bytes
_FEW = 10_000  # files
SLOW = 50.0  # MB/s
_LAGGING = 200.0  # milliseconds
APART = 2.0  # seconds between clocks that nothing of graft minds
_OTHER = "Choose a folder on the cluster's shared file system with --runs FOLDER."


def check_folder(folder: Path) -> Iterator[Check]:
    """Kind, room, speed, locks and renames of the file system that holds an existing folder."""
    mount = files.mount(folder)
    where = f"{mount.kind} at {mount.point}"
    if mount.served:
        yield ok("file system", f"{where}, served over the network")
    elif mount.in_memory:
        yield warning("file system", f"{where}: it is in memory and gone after a restart", _OTHER)
    else:
        yield warning(
            "file system", f"{where}: a disk of this host, by its type",
            "Runs can be submitted from here only if compute nodes see it too (the check on nodes tells); else: --runs FOLDER.",
        )  # fmt: skip
    yield from _room(folder)
    yield from _speed(folder)
    yield from _locks(folder)
    yield from _clock(folder)


def _room(folder: Path) -> Iterator[Check]:
    room = files.room(folder)
    text = f"{size(room.free)} free" + (f", {room.files:,} files" if room.files is not None else "")
    if room.free < _NOTHING or room.files == 0:
        yield failed(
            "room", text, "Delete what is not needed (`graft runs` lists runs), ask for quota, or choose another --runs FOLDER."
        )
    elif room.free < _LITTLE or (room.files is not None and room.files < _FEW):
        yield warning(
            "room", text, "Check that a few checkpoints fit (checkpoint.keep of them stay), or choose another --runs FOLDER."
        )
    else:
        yield ok("room", text)


def _speed(folder: Path) -> Iterator[Check]:
    try:
        speed, lag = files.write_speed(folder), files.latency(folder)
    except OSError as error:
        full = error.errno in (errno.ENOSPC, errno.EDQUOT)
        yield failed(
            "writing", "the disk is full, or the quota used up" if full else str(error),
            "Make room there, or choose another --runs FOLDER." if full else _OTHER,
        )  # fmt: skip
        return
    yield speed_check("writing", speed)
    text = f"{lag:.1f} ms to write a small file safely (create, fsync, rename)"
    if lag > _LAGGING:
        yield warning(
            "small files", text, "Expect slow starts and saves; prefer a file system that is made for many small writes."
        )
    else:
        yield ok("small files", text)


def speed_check(name: str, speed: float) -> Check:
    """Whether a speed (MB/s) is enough, and what it means for a checkpoint."""
    text = f"{speed:.0f} MB/s: 1 GB of checkpoint takes {1000 / max(speed, 1e-3):.1f} s"
    if speed < SLOW:
        return warning(name, text, "Save more rarely (checkpoint.every), or choose a faster file system with --runs FOLDER.")
    return ok(name, text)


def _locks(folder: Path) -> Iterator[Check]:
    try:
        excludes = files.locks_exclude(folder)
    except OSError as error:
        yield failed(
            "locks", f"flock fails: {error.strerror}",
            "Ask for locks on this file system (Lustre: mount with -o flock), or choose another --runs FOLDER.",
        )  # fmt: skip
    else:
        if excludes:
            yield ok("locks", "flock excludes a second holder")
        else:
            yield failed(
                "locks", "flock lets two holders in: two jobs could write to one run",
                "Ask for working locks (Lustre: mount with -o flock), or choose another --runs FOLDER.",
            )  # fmt: skip
    try:
        replaces = files.rename_replaces(folder)
    except OSError as error:
        yield failed("renames", f"a rename fails: {error.strerror}", _OTHER)
    else:
        yield ok("renames", "replace a file at once") if replaces else failed("renames", "do not replace a file at once", _OTHER)


def _clock(folder: Path) -> Iterator[Check]:
    yield clock_check("clock", files.ahead(folder), "the file server")


def clock_check(name: str, apart: float, other: str) -> Check:
    """Whether two clocks agree well enough for times in tables and logs."""
    text = f"{abs(apart):.1f} s from {other}"
    if abs(apart) > APART:
        return warning(
            name, text, "Ask for time synchronization (chrony, ntp): runs go on right, but times in logs and tables mislead."
        )
    return ok(name, text if abs(apart) >= 0.05 else f"agrees with {other}")


def check_network() -> Iterator[Check]:
    """The servers outside, from the login node, and the key for W&B."""
    found = [(server, network.reach(server.url)) for server in network.servers()]
    for server, problem in found:
        name = f"{server.name} ({server.host})"
        if not problem:
            yield ok(name, f"answers; {server.what}")
        elif server.name == "W&B":
            yield warning(
                name,
                f"not reached: {problem}",
                "Runs record offline; send them later with `graft sync` from a host that reaches it.",
            )
        else:
            yield warning(
                name, f"not reached: {problem}",
                "Run `graft fetch RUN` on a host that reaches it and has the same caches, or set https_proxy or HF_ENDPOINT.",
            )  # fmt: skip
    yield _key(next(server.host for server, _ in found if server.name == "W&B"))


def _key(host: str) -> Check:
    where = network.key(host)
    if where == "netrc":
        return ok("W&B key", f"for {host} in ~/.netrc")
    if where == "environment":
        return warning(
            "W&B key", "in WANDB_API_KEY, which jobs do not get", "Run `wandb login` once: it writes the key into ~/.netrc."
        )
    if where == "unreadable":
        return warning(
            "W&B key", "~/.netrc cannot be read", "Check its form and its rights (chmod 600 ~/.netrc), or run `wandb login`."
        )
    return warning("W&B key", f"none for {host}", "Run `wandb login`; without a key runs record offline.")
