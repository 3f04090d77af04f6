"""The progress of something that comes before the training, on the terminal."""

from __future__ import annotations

import contextlib
import os
import sys
import time

from trainer.track.console import BAR_EVERY, PLAIN_EVERY, Rate, duration, terminal


class WorkShown:
    """Shows how many of `total` samples are done, with rate and time left: one line that is written over on a terminal, else a
    line every ten seconds. `shows`: only the main rank does.
    """

    def __init__(self, what: str, total: int, *, shows: bool) -> None:
        self._what, self._total, self._shows = what, total, shows
        self._given = sys.stderr
        self._stream = terminal() if shows else self._given
        self._over = shows and self._stream.isatty() and os.environ.get("TERM") != "dumb"
        self._rate = Rate()
        self._began = self._spoken = time.monotonic()
        self._rate.add(self._began, 0)
        self._say(f"{what}: {total:,} samples", end=not self._over)

    def told(self, done: int) -> None:
        """So many are done by now."""
        now = time.monotonic()
        self._rate.add(now, done)
        if now - self._spoken < (BAR_EVERY if self._over else PLAIN_EVERY):
            return
        self._spoken = now
        rate = self._rate.per_second()
        facts = [f"{done:,} of {self._total:,} samples"]
        if rate is not None:
            facts += [f"{rate:,.0f}/s" if rate >= 10 else f"{rate:.2g}/s", f"eta {duration((self._total - done) / rate)}"]
        self._say(f"{self._what}: {'  '.join(facts)}", end=not self._over)

    def close(self, text: str) -> None:
        """The last line."""
        self._say(text, end=True)
        if self._stream is not self._given:
            self._stream.close()
        self._shows = False

    def _say(self, text: str, *, end: bool) -> None:
        if not self._shows:
            return
        with contextlib.suppress(OSError):  # who reads may go away; the work need not
            print(f"\r\x1b[K{text}" if self._over else text, end="\n" if end else "", file=self._stream, flush=True)
