"""This rank's own time a step, beside the time in which it waits for others."""

from __future__ import annotations

import time
from collections import deque
from typing import Any

import torch

from trainer.runtime.engine import Engine

STEPS, LEAST, WARM_UP = 20, 5, 3  # steps in the mean, at least so many, without the first ones


class Pace:
    """This rank's own seconds a step, up to where it meets the others: the wait for data, and the forward pass up to the last
    backward pass, in which the gradients are averaged (with several micro-batches also the backward passes before it).

    Between the wrapper and the network the buffers of rank 0 come in: that time is another rank's, and is left out. On a GPU the
    work is timed by events, which are read when they are done: nothing waits for them.

    Where the ranks meet earlier, since weights are gathered in the forward pass or gradients cut in every backward pass, the
    forward passes alone count, without those meetings; on a GPU, where no event tells their time apart, the wait for data alone.
    """

    def __init__(self, device: torch.device, engine: Engine) -> None:
        self._cuda, self._meets = device.type == "cuda", engine.meets_early
        self._times: deque[float] = deque(maxlen=STEPS)
        self._running: deque[tuple[float, Any, Any]] = deque(maxlen=STEPS)
        self._left_out = WARM_UP
        self._began: float | None = None  # waits for data since
        self._waited: float | None = None  # seconds until the wrapper was called
        self._entered: Any = None  # when the network was called
        self._passed = 0.0  # seconds of the forward passes so far, where they alone count
        self._apart = 0.0  # seconds of the meetings since the network was called
        self._met = 0.0  # when the last one began
        self._hooks: list[Any] = []
        self.follow(engine)

    def follow(self, engine: Engine) -> None:
        """Listen anew to what the engine calls, which put its network together anew."""
        for hook in self._hooks:
            hook.remove()
        self._hooks = [
            engine.module.register_forward_pre_hook(self._call, prepend=True),
            engine.network.register_forward_pre_hook(self._enter),
        ]
        for part in [] if self._cuda else engine.meetings():  # what the engine does there comes between the two
            self._hooks.append(part.register_forward_pre_hook(self._meet, prepend=True))
            self._hooks.append(part.register_forward_pre_hook(self._part))

    def mean(self) -> float | None:
        """The mean of the last steps; none until there are some."""
        times = list(self._times)
        return sum(times) / len(times) if len(times) >= LEAST else None

    def at(self, stage: str, phase: int = 0, left: int = 0) -> None:
        """Hear where the training is, as `Job.at` does."""
        if stage == "data":
            self._collect()
            self._began, self._waited, self._entered, self._passed = time.perf_counter(), None, None, 0.0
        elif stage == "backward" and phase == 0 and self._entered is not None and self._waited is not None:
            if self._meets and not self._cuda:
                self._passed += time.perf_counter() - self._entered - self._apart
                self._entered = None
            if left == 1:
                if not self._meets:
                    self._running.append((self._waited, self._entered, self._now()))
                else:
                    self._note(self._waited + self._passed)
                self._waited = None

    def _meet(self, *_: Any) -> None:
        self._met = time.perf_counter()

    def _part(self, *_: Any) -> None:
        self._apart += time.perf_counter() - self._met

    def _call(self, *_: Any) -> None:
        if self._began is not None:
            self._waited, self._began = time.perf_counter() - self._began, None

    def _enter(self, *_: Any) -> None:
        if self._waited is not None and self._entered is None:
            self._apart = 0.0
            self._entered = self._now()

    def _now(self) -> Any:
        if not self._cuda:
            return time.perf_counter()
        event = torch.cuda.Event(enable_timing=True)  # type: ignore[no-untyped-call]
        event.record()
        return event

    def _collect(self) -> None:
        while self._running and (not self._cuda or self._running[0][2].query()):
            waited, entered, ended = self._running.popleft()
            took = entered.elapsed_time(ended) / 1000 if self._cuda else ended - entered
            self._note(waited + took)

    def _note(self, seconds: float) -> None:
        if self._left_out:
            self._left_out -= 1  # the first steps set things up
        else:
            self._times.append(seconds)
