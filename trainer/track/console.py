"""The progress of a training on the terminal; plain lines where there is none."""

from __future__ import annotations

import contextlib
import os
import sys
import time
from collections import deque
from typing import TYPE_CHECKING, Any, TextIO

from trainer.rundir.metric import few

if TYPE_CHECKING:
    from rich.console import Console as RichConsole
    from rich.progress import Progress, TaskID

PLAIN_EVERY = 10.0
BAR_EVERY = 0.25
WINDOW = 30.0
WAITS = 0.02  # of a step: less is not worth a word


def byte_size(count: float) -> str:
    """Bytes for people."""
    for unit in ("B", "kB", "MB"):
        if count < 1000:
            return f"{count:.0f} {unit}" if unit == "B" else f"{count:.1f} {unit}"
        count /= 1000
    return f"{count:.1f} GB"


def duration(seconds: float) -> str:
    """`4 s`, `1:05`, `2:03:04`, `1 d 02:03`."""
    whole = round(seconds)
    minutes, second = divmod(whole, 60)
    hours, minute = divmod(minutes, 60)
    days, hour = divmod(hours, 24)
    if days:
        return f"{days} d {hour:02}:{minute:02}"
    if hours:
        return f"{hours}:{minute:02}:{second:02}"
    return f"{minutes}:{second:02}" if minutes else f"{second} s"


def short(value: float) -> str:
    """A number in four significant digits."""
    if value != value:
        return "not a number"
    return f"{value:.4f}" if 0.001 <= abs(value) < 100 else f"{value:.4g}"


class Rate:
    """Samples a second over the last half minute."""

    def __init__(self) -> None:
        self._seen: deque[tuple[float, int]] = deque()

    def add(self, now: float, samples: int) -> None:
        self._seen.append((now, samples))
        while len(self._seen) > 2 and now - self._seen[0][0] > WINDOW:
            self._seen.popleft()

    def per_second(self) -> float | None:
        """None until two points in time are known."""
        (start, first), (end, last) = self._seen[0], self._seen[-1]
        return (last - first) / (end - start) if end > start and last > first else None


def terminal() -> TextIO:
    """The terminal that the launcher names in GRAFT_TERMINAL, whose stderr is a pipe to it; else stderr."""
    name = os.environ.get("GRAFT_TERMINAL")
    if not name:
        return sys.stderr
    try:
        # not as the terminal that controls this process: Ctrl-C is the launcher's to pass on
        return os.fdopen(os.open(name, os.O_WRONLY | os.O_NOCTTY), "w", encoding="utf-8")
    except OSError:  # closed since, or another machine's
        return sys.stderr


class Console:
    """Shows a run on `stream` (the launcher's terminal, or stderr); only the main rank prints.

    `total_samples`: samples of the whole training; `seen`: those of earlier attempts, which `update` and `pulse` include.
    """

    def __init__(
        self, *, name: str, total_samples: int, main: bool, seen: int = 0, stream: TextIO | None = None
    ) -> None:  # fmt: skip
        self._name = name
        self._total = total_samples
        self._seen = seen
        self._main = main
        self._given = stream if stream is not None else sys.stderr
        self._stream = terminal() if main and stream is None else self._given
        self._rate = Rate()
        self._epoch_loss: float | None = None
        self._latest: dict[str, Any] = {}
        self._told = -1
        self._spoken = -PLAIN_EVERY
        self._every = PLAIN_EVERY
        self._rich: RichConsole | None = None
        self._progress: Progress | None = None
        self._task: TaskID | None = None
        if main and self._stream.isatty() and os.environ.get("TERM") != "dumb":
            self._start()

    def _start(self) -> None:
        from rich.console import Console as RichConsole
        from rich.markup import escape
        from rich.progress import BarColumn, Progress, TaskProgressColumn, TextColumn

        self._rich = RichConsole(file=self._stream, highlight=False)
        self._progress = Progress(
            TextColumn("[bold]{task.description}"),
            BarColumn(bar_width=None),
            TaskProgressColumn(),
            TextColumn("{task.fields[facts]}"),
            console=self._rich,
            expand=True,
            refresh_per_second=1 / BAR_EVERY,
        )
        self._every = BAR_EVERY
        self._progress.start()
        self._task = self._progress.add_task(escape(self._name), total=self._total, completed=self._seen, facts="")

    def update(self, samples: int, step: int, epoch: float, metrics: dict[str, Any]) -> None:
        """A point of the curves; the mean loss of an epoch waits for the next evaluation's line."""
        if not self._main:
            return
        self._epoch_loss = metrics.get("train/epoch_loss", self._epoch_loss)
        if "train/loss" in metrics:
            self._latest = metrics
            self._rate.add(time.monotonic(), samples)
            self.pulse(samples, step, epoch)

    def pulse(self, samples: int, step: int, epoch: float) -> None:
        """How far the training is, with the latest loss that is known; cheap enough for every step."""
        now = time.monotonic()
        last = samples >= self._total
        if not self._main or (now - self._spoken < self._every and not last) or (last and samples == self._told):
            return
        self._spoken, self._told = now, samples
        self._rate.add(now, samples)
        facts = self._facts(samples, epoch, self._latest)
        if self._progress is not None and self._task is not None:
            from rich.markup import escape

            self._progress.update(self._task, completed=samples, facts=escape("  ".join(facts[1:])))
            return
        share = 100 * samples / max(1, self._total)
        self._plain(f"{share:5.1f}%  step {step}  " + "  ".join(facts))

    def _facts(self, samples: int, epoch: float, metrics: dict[str, Any]) -> list[str]:
        facts = [f"{samples:,} samples", f"epoch {epoch:.2f}"]
        rate = self._rate.per_second()
        if rate is not None:
            facts.append(f"{rate:,.0f}/s" if rate >= 10 else f"{rate:.2g}/s")
        waited, mfu = metrics.get("speed/data_wait"), metrics.get("speed/mfu")
        if mfu is not None:
            facts.append(f"MFU {mfu:.1%}")
        if waited is not None and waited >= WAITS:
            facts.append(f"{waited:.0%} waiting for data")
        if metrics.get("train/loss") is not None:
            facts.append(f"loss {short(float(metrics['train/loss']))}")
        if metrics.get("lr") is not None:
            facts.append(f"lr {float(metrics['lr']):.3g}")
        if rate is not None and samples < self._total:
            facts.append(f"eta {duration((self._total - samples) / rate)}")
        return facts

    def message(self, text: str) -> None:
        """A line of text above the progress bar."""
        if not self._main:
            return
        if self._rich is not None:
            self._rich.print(text, markup=False)
        else:
            self._plain(text)

    def evaluation(self, metrics: dict[str, Any]) -> None:
        """The result of an evaluation, with where it was taken when the metrics say so (`step`, `epoch`).

        Of the many metrics of several heads the leading ones are shown. The mean training loss of the last epoch stands beside
        it, once.
        """
        at = f"step {metrics['step']}  " if "step" in metrics else ""
        at += f"epoch {metrics['epoch']:.2f}  " if "epoch" in metrics else ""
        values = "  ".join(
            f"{key.removeprefix('val/')} {short(float(metrics[key]))}"
            for key in few(metrics)
            if isinstance(metrics[key], int | float)
        )
        learnt = "" if self._epoch_loss is None else f"  (training loss of the epoch {short(float(self._epoch_loss))})"
        self._epoch_loss = None
        self.message(f"evaluated  {at}{values}{learnt}")

    def close(self) -> None:
        """End the display; the terminal is left as it was."""
        if self._progress is not None:
            self._progress.stop()
            self._progress = None
        if self._stream is not self._given:
            self._stream.close()
            self._main = False

    def _plain(self, text: str) -> None:
        with contextlib.suppress(OSError):  # who reads may go away (`| head`); the training need not
            print(text, file=self._stream, flush=True)
