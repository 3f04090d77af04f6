"""How many operations a sample takes, as a process beside the training counts them."""

from __future__ import annotations

import json
import logging
import os
import subprocess
import sys
import tempfile
from contextlib import suppress
from typing import IO, Any

from trainer.config import Run
from trainer.config.alike import alike
from trainer.memory import available
from trainer.rundir import RunDir, write_atomically

log = logging.getLogger("graft")
_LIBRARIES = 4 << 30  # bytes that the other process may take besides the network
_SHOWN = 2000  # letters of what it said last
_COPIES = 4  # of the network: itself, an average, and on the way
Stages = list[tuple[int, float]]  # from so many samples on, so many operations a sample


def at(stages: Stages, samples: int) -> float | None:
    """The operations of a sample after so many samples."""
    return next((work for start, work in reversed(stages) if start <= samples), None)


class Counting:
    """Has the operations of a run folder counted by another process, at the lowest priority.

    It puts the network together in the machine's memory, and so begins only where there is twice the room that it is allowed,
    for networks of `held` bytes; it may take no more. The folder keeps what was counted; of what cannot be followed nothing is
    known.
    """

    def __init__(self, folder: RunDir, run: Run, world: int, held: int) -> None:
        self._kept, self._of = folder.operations, alike(run)
        kept = folder.read_json(self._kept)
        self._stages = _stages(kept) if kept.get("alike") == self._of else None
        self._process: subprocess.Popen[bytes] | None = None
        self._files: list[IO[str]] = []
        most = _LIBRARIES + _COPIES * held
        if self._stages is None and available() < 2 * most:
            log.info(
                "no MFU is known: counting the operations of a step takes memory that is not to spare (%d GB)", most // 10**9
            )
        elif self._stages is None:
            words = ["nice", "-n", "19", sys.executable, "-m", "trainer", "operations", str(folder.config), f"--world={world}"]
            words += [f"--memory={most}"]
            # of GRAFT_LAUNCHED it dies with this process
            own = {**os.environ, "CUDA_VISIBLE_DEVICES": "", "OMP_NUM_THREADS": "1", "GRAFT_LAUNCHED": "1"}
            with suppress(OSError):
                # nobody reads meanwhile, and pipes fill up
                self._files = [tempfile.TemporaryFile("w+") for _ in range(2)]  # noqa: SIM115 (closed with this)
                self._process = subprocess.Popen(
                    words, env=own, stdin=subprocess.DEVNULL, stdout=self._files[0], stderr=self._files[1]
                )

    def __call__(self, samples: int) -> float | None:
        """The operations of a sample after so many samples; none while they are not counted."""
        if self._process is not None and self._process.poll() is not None:
            with suppress(ValueError):
                self._stages = _stages(json.loads(_read(self._files[0])))
            if self._stages is None:
                problem = _read(self._files[1]).strip()[-_SHOWN:]
                log.info("no MFU is known, since the operations of a step are not: %s", problem or "nothing was said")
            else:
                with suppress(OSError):
                    write_atomically(self._kept, json.dumps({"alike": self._of, "stages": self._stages}) + "\n")
            self._process = None
        return None if self._stages is None else at(self._stages, samples)

    def close(self) -> None:
        """End it, counted or not."""
        if self._process is not None:
            self._process.kill()
            self._process.wait()
            self._process = None
        for file in self._files:
            file.close()


def _read(file: IO[str]) -> str:
    file.seek(0)
    return file.read()


def _stages(said: Any) -> Stages | None:
    """What a file or the other process says; none where that is nothing of the kind."""
    try:
        return [(int(start), float(work)) for start, work in said["stages"]] or None
    except (TypeError, KeyError, ValueError):
        return None
