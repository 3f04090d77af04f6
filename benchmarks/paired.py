"""Measurements in pairs: contestants by turns, the first compared with each of the others and with itself.

One pass runs A B C C B A: what drifts within it falls on all alike. A ratio is of two values of the same half of a pass; the
control (A/A) is of the two values of A of one pass. A difference under 3% is not claimed from fewer than 40 pairs.
"""

from __future__ import annotations

import statistics
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

ENOUGH, LEAST = 40, 0.03


@dataclass(frozen=True)
class Spread:
    """Median and quartiles of `count` values."""

    median: float
    low: float
    high: float
    count: int

    @classmethod
    def of(cls, values: Sequence[float]) -> Spread:
        """Raises ValueError for no values."""
        if not values:
            raise ValueError("nothing was measured")
        if len(values) == 1:
            return cls(values[0], values[0], values[0], 1)
        low, middle, high = statistics.quantiles(values, n=4, method="inclusive")
        return cls(middle, low, high, len(values))

    def times(self, factor: float) -> Spread:
        """In another unit."""
        return Spread(factor * self.median, factor * self.low, factor * self.high, self.count)

    def text(self, form: str = ".4g") -> str:
        """`1.02 (0.99 to 1.05)`."""
        return f"{self.median:{form}} ({self.low:{form}} to {self.high:{form}})"


@dataclass(frozen=True)
class Measured:
    """Values by contestant in the order of measuring, two a pass, the smaller the better; the first is the one compared with."""

    times: Mapping[str, Sequence[float]]

    @property
    def base(self) -> str:
        return next(iter(self.times))

    def ratio(self, name: str) -> Spread:
        """A contestant over the first."""
        return Spread.of([value / base for value, base in zip(self.times[name], self.times[self.base], strict=True)])

    def difference(self, name: str) -> Spread:
        """A contestant less the first."""
        return Spread.of([value - base for value, base in zip(self.times[name], self.times[self.base], strict=True)])

    def control(self, *, difference: bool = False) -> Spread:
        """The first against itself within a pass."""
        base = self.times[self.base]
        pairs = list(zip(base[::2], base[1::2], strict=True))
        return Spread.of([second - first if difference else second / first for first, second in pairs])

    def verdict(self, name: str) -> str:
        """What may be said of a contestant beside the first."""
        ratio, control = self.ratio(name), self.control()
        off = abs(ratio.median - 1)
        if off < LEAST and ratio.count < ENOUGH:
            return f"no difference shown (under 3%, {ratio.count} pairs)"
        if ratio.low <= 1 <= ratio.high or off <= abs(control.median - 1):
            return "no difference shown (within the noise)"
        return "slower" if ratio.median > 1 else "faster"


def measure(contestants: Mapping[str, Callable[[], float]], passes: int, *, warm: bool = True) -> Measured:
    """Run every contestant twice a pass, there and back; `warm`: once before, for nothing."""
    names = list(contestants)
    times: dict[str, list[float]] = {name: [] for name in names}
    if warm:
        for name in names:
            contestants[name]()
    for number in range(passes):
        for name in [*names, *reversed(names)]:
            times[name].append(contestants[name]())
            print(f"pass {number + 1} of {passes}: {name} {times[name][-1]:.4g}", file=sys.stderr, flush=True)
    return Measured(times)


def table(measured: Measured, unit: str, *, scale: float = 1.0, difference: bool = False) -> list[str]:
    """Markdown: a line a contestant, then the control."""
    what = f"less {measured.base}, {unit}" if difference else f"over {measured.base}"
    lines = [f"| | {unit}, median (quartiles) | {what} | pairs | |", "|---|---|---|---|---|"]
    for name, values in measured.times.items():
        own = Spread.of([value * scale for value in values])
        if name == measured.base:
            lines.append(f"| {name} | {own.text()} | | {own.count} runs | |")
            continue
        against = measured.difference(name) if difference else measured.ratio(name)
        factor = scale if difference else 1.0
        shown = against.times(factor)
        lines.append(f"| {name} | {own.text()} | {shown.text()} | {shown.count} | {measured.verdict(name)} |")
    control = measured.control(difference=difference)
    factor = scale if difference else 1.0
    shown = control.times(factor)
    lines.append(f"| {measured.base} against itself (control) | | {shown.text()} | {shown.count} | |")
    return lines
