"""What follows from how fast the steps are: the share of the cards' peak, the time that is left, and a word for later runs."""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Mapping
from dataclasses import dataclass
from statistics import median, quantiles
from typing import Any

from trainer.operations import Counting

_KEPT = 500  # points that the summary's figures are of


@dataclass(frozen=True)
class Machinery:
    """What a run is trained on: `device` as its driver (of a CPU the kernel) calls it, `world` ranks, `gpus` of them on GPUs,
    `threads` of a CPU each. `peak`: operations a second of all of them on paper; none where that is not known.
    """

    device: str
    world: int
    gpus: int
    threads: int
    peak: float | None


class Speed:
    """Of one attempt. `total`: samples of the run; `alike`: its key among runs, `between` that of what is between its steps;
    `counting` knows the operations of a sample."""

    def __init__(self, on: Machinery, total: int, alike: str, between: str, counting: Counting | None) -> None:
        self._on, self._total, self._alike, self._between, self._counting = on, total, alike, between, counting
        self._rates: deque[float] = deque(maxlen=_KEPT)
        self._waits: deque[float] = deque(maxlen=_KEPT)
        self._from: tuple[float, int] | None = None  # the first point: what sets things up is before it
        self._overall: float | None = None
        self._mfu: float | None = None

    def figures(self, values: Mapping[str, Any], samples: int) -> dict[str, float]:
        """What there is to say beside the figures of a point: MFU, and the seconds and hours of GPUs that are left."""
        rate = values.get("speed/samples_per_second")
        if rate is None:
            return {}
        now, found = time.monotonic(), dict[str, float]()
        work = self._counting(samples) if self._counting is not None else None
        if work is not None and self._on.peak:
            # Chowdhery et al. 2022, appendix B: what the model needs over what the cards could do in the same time
            found["speed/mfu"] = self._mfu = work * rate / self._on.peak
        if self._from is None:
            self._from = (now, samples)
            return found
        self._rates.append(rate)
        self._waits.append(values.get("speed/data_wait", 0.0))
        began, first = self._from
        if samples > first and now > began:
            self._overall = (samples - first) / (now - began)
            left = max(0, self._total - samples) / self._overall
            found["speed/eta_seconds"] = left
            if self._on.gpus:
                found["speed/gpu_hours_left"] = left * self._on.gpus / 3600
        return found

    def close(self) -> None:
        """End what counts beside the training."""
        if self._counting is not None:
            self._counting.close()

    def summary(self) -> dict[str, Any] | None:
        """For later runs: samples a second in the median and the quartiles of the points, `overall` with evaluations and saves;
        the first point is left out. None where there was no other.
        """
        rates = list(self._rates)
        if not rates:
            return None
        low, _, high = quantiles(rates, n=4) if len(rates) > 1 else (rates[0],) * 3
        return {
            "alike": self._alike, "between": self._between, "device": self._on.device, "world": self._on.world,
            "gpus": self._on.gpus, "threads": self._on.threads, "points": len(rates),
            "samples_per_second": round(median(rates), 3), "quartiles": [round(low, 3), round(high, 3)],
            "data_wait": round(median(self._waits), 4),
            "overall": None if self._overall is None else round(self._overall, 3),
            "mfu": None if self._mfu is None else round(self._mfu, 4),
        }  # fmt: skip
