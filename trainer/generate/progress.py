"""How far the making of images is: a bar at a terminal, else a line now and then."""

from __future__ import annotations

import sys
import time
from dataclasses import dataclass

from trainer.track.console import Rate, duration, terminal

_EVERY = 5.0  # seconds between two lines where nobody watches


class Progress:
    """Images that were made, with rate and end: a bar at a terminal, else a line now and then."""

    def __init__(self, total: int, *, main: bool) -> None:
        self._total, self._main = total, main
        self._rate, self._stream = Rate(), terminal()
        self._done, self._spoken = 0.0, time.monotonic()

    def __enter__(self) -> Progress:
        self._rate.add(time.monotonic(), 0)
        return self

    def __exit__(self, *_: object) -> None:
        if self._main and self._stream.isatty():
            print("\r\x1b[K", end="", file=self._stream, flush=True)
        if self._stream is not sys.stderr:
            self._stream.close()

    def stepping(self, count: int, steps: int) -> Step:
        """Called after each pass through the network: a batch of `count` comes nearer by a step."""
        before = self._done
        return Step(self, before, count, steps)

    def done(self, images: int) -> None:
        """So many images are written."""
        self._done = float(images)
        self.show(self._done, last=images >= self._total)

    def show(self, done: float, *, last: bool = False) -> None:
        """Tell how far it is, where somebody would like to know."""
        if not self._main:
            return
        now = time.monotonic()
        live = self._stream.isatty()
        if not last and now - self._spoken < (0.25 if live else _EVERY):
            return
        self._spoken = now
        self._rate.add(now, round(done * 1000))
        rate = self._rate.per_second()
        told = f"{int(done):,} of {self._total:,} images"
        if rate is not None:
            each = rate / 1000
            told += f"  {each:.3g}/s" + (f"  eta {duration((self._total - done) / each)}" if done < self._total else "")
        if live:
            print(f"\r\x1b[K{told}", end="", file=self._stream, flush=True)
        elif not last:
            print(told, file=self._stream, flush=True)


@dataclass
class Step:
    """A pass through the network of a batch."""

    progress: Progress
    before: float
    count: int
    steps: int
    taken: int = 0

    def __call__(self) -> None:
        self.taken += 1
        self.progress.show(self.before + self.count * min(1.0, self.taken / self.steps))
