"""How many operations a sample takes, as a process beside the training counts them."""

from __future__ import annotations

import json
import logging
import os
import subprocess
import sys
from contextlib import suppress
from typing import Any

from trainer.config import Run
from trainer.config.alike import alike
from trainer.rundir import RunDir, write_atomically

log = logging.getLogger("graft")
Stages = list[tuple[int, float]]  # from so many samples on, so many operations a sample


def at(stages: Stages, samples: int) -> float | None:
    """The operations of a sample after so many samples."""
    return next((work for start, work in reversed(stages) if start <= samples), None)


class Counting:
    """Has the operations of a run folder counted by another process, at the lowest priority, which takes nothing of a step.

    The folder keeps what was counted; of what cannot be followed nothing is known.
    """

    def __init__(self, folder: RunDir, run: Run, world: int) -> None:
        self._kept, self._of = folder.operations, alike(run)
        kept = folder.read_json(self._kept)
        self._stages = _stages(kept) if kept.get("alike") == self._of else None
        self._process: subprocess.Popen[str] | None = None
        if self._stages is None:
            words = ["nice", "-n", "19", sys.executable, "-m", "trainer", "operations", str(folder.config), f"--world={world}"]
            # of GRAFT_LAUNCHED it dies with this process
            own = {**os.environ, "CUDA_VISIBLE_DEVICES": "", "OMP_NUM_THREADS": "1", "GRAFT_LAUNCHED": "1"}
            with suppress(OSError):
                self._process = subprocess.Popen(
                    words, env=own, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
                )

    def __call__(self, samples: int) -> float | None:
        """The operations of a sample after so many samples; none while they are not counted."""
        if self._process is not None and self._process.poll() is not None:
            out, problem = self._process.communicate()
            with suppress(ValueError):
                self._stages = _stages(json.loads(out))
            if self._stages is None:
                log.info("no MFU is known, since the operations of a step are not: %s", problem.strip() or "nothing was said")
            else:
                with suppress(OSError):
                    write_atomically(self._kept, json.dumps({"alike": self._of, "stages": self._stages}) + "\n")
            self._process = None
        return None if self._stages is None else at(self._stages, samples)

    def close(self) -> None:
        """End it, counted or not."""
        if self._process is not None:
            self._process.kill()
            self._process.communicate()
            self._process = None


def _stages(said: Any) -> Stages | None:
    """What a file or the other process says; none where that is nothing of the kind."""
    try:
        return [(int(start), float(work)) for start, work in said["stages"]] or None
    except (TypeError, KeyError, ValueError):
        return None
