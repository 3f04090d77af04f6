"""How near the pictures come that a generator makes of source pictures: of some validation pairs, always by the same noise."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING

import torch
from torch import nn

from trainer.config.tasks.diffusion import Config
from trainer.pixels import pixels
from trainer.tasks.base import Batch, Evaluation, Sheet
from trainer.tasks.denoising import DenoisingMeasure

if TYPE_CHECKING:
    from trainer.tasks.diffusion import Diffusion

SHOWN = 8  # of the pairs that are translated
_WORDS = ("input", "output", "target")


class PairMeasure(DenoisingMeasure):
    """The loss over fixed noise of all pairs; some of them, evenly spread over the samples, are translated and measured.

    The noise of a pair belongs to its place among the samples, and as many pairs are translated at once whatever there is to do,
    so that the number of ranks changes no picture.
    """

    def __init__(self, task: Diffusion, config: Config, device: torch.device, samples: int) -> None:
        super().__init__(task, config, device, None)
        count = min(config.samples.count, samples)
        self._rows_of = {place * samples // count: place for place in range(count)}
        self._held: list[tuple[int, torch.Tensor]] = []  # sample, its input upon its target
        # whether it was seen, the figures of what was made, those of the input itself
        self._rows = torch.zeros(count, 1 + 2 * len(task.ruler.names), dtype=torch.float64, device=device)
        self._triples: torch.Tensor | None = None

    def update(self, network: nn.Module, batch: Batch) -> None:
        """Add a batch to the loss, and hold the pairs in it that are to be translated."""
        super().update(network, batch)
        for row, index in enumerate(batch.indices.tolist()):
            if index in self._rows_of:
                self._held.append((index, batch.images[row].cpu()))

    def finish(self, network: nn.Module, rank: int, world: int, at: Callable[[str], None]) -> None:
        """Translate the pairs that this rank has seen."""
        at("make")
        task, asked = self._task, self._config.samples
        channels, side = task.beside.image
        shown = self._pictured
        self._triples = torch.zeros(len(shown), len(_WORDS), channels, side, side, dtype=torch.uint8)
        plan = task.plan()
        for start in range(0, len(self._held), asked.batch):
            part = self._held[start : start + asked.batch]
            filled = [*part, *[part[-1]] * (asked.batch - len(part))]
            pairs = torch.stack([pair for _, pair in filled]).to(self._rows.device)
            given, target = pairs.chunk(2, dim=1)
            seeds = [asked.seed + index for index, _ in filled]
            made = task.translate(network, given, seeds, plan, lambda: at("make")).to(self._rows.device)
            found, wanted, plain = (value[: len(part)] for value in (made, pixels(target), pixels(given)))
            seen = torch.ones(len(part), 1, dtype=torch.float64, device=found.device)
            rows = torch.cat([seen, task.ruler(found, wanted), task.ruler(plain, wanted)], dim=1)
            triples = torch.stack([plain, found, wanted], dim=1).cpu()
            for place, (index, _) in enumerate(part):
                row = self._rows_of[index]
                self._rows[row] = rows[place]
                if row in shown:
                    self._triples[shown.index(row)] = triples[place]
        self._held.clear()

    @property
    def _pictured(self) -> list[int]:
        count = min(SHOWN, len(self._rows))
        return [place * len(self._rows) // count for place in range(count)]

    def tensors(self) -> Sequence[torch.Tensor]:
        """What is to be summed over the ranks, in place."""
        return [*super().tensors(), self._rows, *([] if self._triples is None else [self._triples])]

    def result(self) -> Evaluation:
        """The loss, and the means over the pairs that were translated; of the input itself, for comparison, in the details."""
        whole = super().result()
        if not self._config.samples.count:
            return whole
        rows = self._rows.cpu()
        seen = rows[rows[:, 0] > 0]
        names = self._task.ruler.names
        means = (seen.sum(dim=0) / max(1, len(seen))).tolist()
        metrics = whole.metrics | dict(zip(names, means[1 : 1 + len(names)], strict=True))
        details = whole.details | {"input": dict(zip(names, means[1 + len(names) :], strict=True)), "translated": len(seen)}
        sheet = None
        if self._triples is not None and len(self._triples):
            sheet = Sheet(self._triples.flatten(0, 1), _WORDS * len(self._triples), len(_WORDS))
        return Evaluation(metrics, details, sheet)
