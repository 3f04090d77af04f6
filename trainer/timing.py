"""Where the time of the steps goes: how fast they are, and how long they wait for data."""

from __future__ import annotations


class Timing:
    """The steps since the last point of the record, of `batch` samples each; what is between steps is not in it."""

    def __init__(self, batch: int) -> None:
        self._batch = batch
        self._steps, self._took, self._waited = 0, 0.0, 0.0

    def step(self, seconds: float) -> None:
        """A step took so long, from the wish for its data to its end. On a GPU that is the time of the GPU as well, to within
        the optimizer's own: each step waits for the norm of its gradient.
        """
        self._steps += 1
        self._took += seconds

    def waited(self, seconds: float) -> None:
        """So long a step waited until its data was there, in the mean of the ranks."""
        self._waited += seconds

    def figures(self) -> dict[str, float]:
        """Samples a second, seconds a step, and what of them was waiting for data; empty where there was no step."""
        steps, took, waited = self._steps, self._took, self._waited
        self._steps, self._took, self._waited = 0, 0.0, 0.0
        if not steps or took <= 0:
            return {}
        return {
            "speed/samples_per_second": steps * self._batch / took, "speed/step_seconds": took / steps,
            "speed/data_wait_seconds": waited / steps, "speed/data_wait": min(1.0, waited / took),
        }  # fmt: skip
