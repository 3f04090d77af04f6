"""micro-batch.json: what `train.micro_batch: auto` came to in this run."""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass, field
from typing import Any

from trainer.config import EXIT_REQUEUE, GraftError
from trainer.rundir.folder import RunDir, write_atomically


@dataclass
class Sizes:
    """Samples in a micro-batch, and in a batch of an evaluation where twice as many do not fit.

    `found_for` says for what it holds; `sure`: it was tried; `refused` are the sizes that did not fit: of what (`micro_batch`,
    `evaluation`), how many samples, on which rank, at which step, in which words.
    """

    micro_batch: int
    evaluation: int | None = None
    found_for: str = ""
    sure: bool = False
    refused: list[dict[str, Any]] = field(default_factory=list)

    def refuse(self, what: str, samples: int, rank: int, step: int, why: str) -> None:
        """Note a size that did not fit."""
        self.refused.append({"what": what, "samples": samples, "rank": rank, "step": step, "why": why})

    def told(self) -> dict[str, Any]:
        """For the summary of the run."""
        more = {"evaluation_batch": self.evaluation} if self.evaluation is not None else {}
        gone = [
            f"{'evaluation of ' * (one['what'] == 'evaluation')}{one['samples']} on rank {one['rank']} at step {one['step']}: "
            f"{one['why']}"
            for one in self.refused
        ]
        return {"micro_batch": self.micro_batch, **more, **({"did_not_fit": gone} if gone else {})}

    def words(self) -> str:
        """For people: what is taken at a time, and what was too much."""
        text = f"{self.micro_batch} at a time"
        text += f", {self.evaluation} in an evaluation" if self.evaluation is not None else ""
        gone = [
            f"{one['samples']}{' in an evaluation' * (one['what'] == 'evaluation')} on rank {one['rank']}" for one in self.refused
        ]
        return f"{text} (train.micro_batch: auto)" + (f"; too many: {', '.join(gone)}" if gone else "")

    def write(self, folder: RunDir) -> None:
        """Leave it for the next attempt."""
        write_atomically(folder.sizes, json.dumps(asdict(self), indent=1) + "\n")


def read_sizes(folder: RunDir) -> Sizes | None:
    """What an attempt left; none where nothing was found, or nothing that this version reads."""
    try:
        found = Sizes(**folder.read_json(folder.sizes))
    except TypeError:
        return None
    return found if isinstance(found.micro_batch, int) and found.micro_batch > 0 else None


class TooLargeError(GraftError):
    """Memory ran out with these sizes; `sizes` are the next smaller ones, with which the run goes on when it starts again."""

    code = EXIT_REQUEUE

    def __init__(self, said: str, sizes: Sizes) -> None:
        super().__init__(said)
        self.sizes = sizes
