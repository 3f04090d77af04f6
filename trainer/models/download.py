"""Files from a server into a cache: resumed where a download broke off, checked, and never half there under their name."""

from __future__ import annotations

import hashlib
import http.client
import os
import urllib.error
import urllib.request
from collections.abc import Callable
from contextlib import AbstractContextManager
from pathlib import Path

from trainer.config import UserError
from trainer.rundir import locked

_CHUNK = 1 << 20
_STALL_SECONDS = 15.0


def alone(file: Path) -> AbstractContextManager[None]:
    """One download at a time for all processes that share the cache."""
    return locked(file.with_name(f".{file.name}.lock"))


def whole(file: Path, sha256: str) -> bool:
    """Whether a file is there, not empty, and its hash begins with `sha256`. Raises OSError when it cannot be read."""
    try:
        with file.open("rb") as stream:
            found = hashlib.file_digest(stream, "sha256").hexdigest()
            return stream.tell() > 0 and found.startswith(sha256)
    except FileNotFoundError:
        return False


def download(url: str, file: Path, sha256: str, progress: Callable[[int, int | None], None]) -> None:
    """Bring a file; `progress(done, total)` in bytes. What a kill left is gone on with, if the hash can tell that it fits.

    Raises UserError when what came is not what was published, OSError and HTTPException when the network or the disk fails.
    """
    part = file.with_name(f".{file.name}.part")
    kept = part.stat().st_size if sha256 and part.exists() else 0
    for start in dict.fromkeys((kept, 0)):  # a part that does not fit is brought anew
        try:
            _bring(url, part, start, progress)
        except urllib.error.HTTPError as error:
            if not (start and error.code == http.HTTPStatus.REQUESTED_RANGE_NOT_SATISFIABLE):
                raise
        if whole(part, sha256):
            part.replace(file)
            return
        part.unlink(missing_ok=True)
    raise UserError(f"what {url} sent is damaged: its sha256 does not begin with {sha256}, as its name says; nothing was kept")


def _bring(url: str, part: Path, start: int, progress: Callable[[int, int | None], None]) -> None:
    headers = {"User-Agent": "graft", **({"Range": f"bytes={start}-"} if start else {})}
    with urllib.request.urlopen(urllib.request.Request(url, headers=headers), timeout=_STALL_SECONDS) as answer:
        if answer.status != http.HTTPStatus.PARTIAL_CONTENT:
            start = 0
        length = answer.headers.get("Content-Length")
        total = start + int(length) if length else None
        done = start
        with part.open("ab" if start else "wb") as stream:
            progress(done, total)
            while chunk := answer.read(_CHUNK):
                stream.write(chunk)
                done += len(chunk)
                progress(done, total)
            stream.flush()
            os.fsync(stream.fileno())
    if total is not None and done < total:
        raise http.client.IncompleteRead(b"", total - done)
