"""How near pictures come to themselves again, that were sent there and back."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from torch import nn

from trainer.config.fidelity import Distances
from trainer.pixels import pixels
from trainer.spec import Judge
from trainer.tasks.base import Batch, Evaluation, Sheet
from trainer.tasks.likeness import distances
from trainer.tasks.likening import l1, nearness

if TYPE_CHECKING:
    from trainer.tasks.cycle import Cycle

_WORDS = ("input", "output", "back")


@dataclass
class OfBoth:
    """What is compared: features of what is made with features of pictures of that class; those are computed once."""

    config: Distances
    judge: Judge
    real: tuple[dict[str, torch.Tensor], dict[str, torch.Tensor]] | None = None


class ReturnMeasure:
    """A row for each sample, each a picture of one of both classes, and pictures of some.

    The figures are those of the networks alone: what critics say is no measure, since they learn as well.
    """

    def __init__(self, task: Cycle, shown: int, samples: int, device: torch.device) -> None:
        self._task = task
        # the class and 1, its loss, PSNR and mean absolute error, and each of the losses that are measured
        self._names = tuple(name for name in task.loss_names if name != "adversarial")
        self._rows = torch.zeros(samples, 4 + len(self._names), dtype=torch.float64, device=device)
        count = min(shown, samples)
        self._shown = [place * samples // count for place in range(count)] if count else []
        channels, side = (max(task.channels), task.spec.image_size) if samples else (1, 1)
        self._made = torch.zeros(len(self._shown), len(_WORDS), channels, side, side, dtype=torch.uint8)

        likeness = self._likeness = task.likeness
        widths = {} if likeness is None else likeness.judge.widths
        self._of_made, self._of_real = (
            {layer: torch.zeros(samples, width) for layer, width in widths.items() if wanted}
            for wanted in (True, likeness is not None and likeness.real is None)
        )

    def update(self, network: nn.Module, batch: Batch) -> None:
        """Add a batch: of each class its own way there and back."""
        for label in (0, 1):
            places = (batch.labels == label).nonzero()[:, 0]
            if len(places):
                self._add(network, self._task.cut(batch.images)[label][places], label, batch.indices[places.cpu()])

    def _add(self, network: Any, images: torch.Tensor, label: int, indices: torch.Tensor) -> None:
        there, back = (network.forth, network.back) if label == 0 else (network.back, network.forth)
        made = there(images).float()
        again = back(made).float()
        losses = {"cycle": l1(again, images)}
        if "identity" in self._names:
            losses["identity"] = l1(back(images).float(), images)
        near = nearness(pixels(again), pixels(images))
        columns = [
            torch.full_like(near[:, 0], label + 1), self._task.weighted(losses).double(), *near.unbind(dim=1),
            *(losses[name].double() for name in self._names),
        ]  # fmt: skip
        self._rows[indices.to(self._rows.device)] = torch.stack(columns, dim=1)
        if self._likeness is not None:
            for found, of in ((self._of_made, made), (self._of_real, images)):
                if found:
                    for layer, value in self._likeness.judge(pixels(of)).items():
                        found[layer][indices] = value
        for row, index in enumerate(indices.tolist()):
            if index in self._shown:
                for place, picture in enumerate((images, made, again)):
                    self._made[self._shown.index(index), place] = pixels(picture[row]).cpu()  # grey is repeated

    def add(self, logits: torch.Tensor, batch: Batch) -> None:
        """Never asked for: what a network makes of an image is not kept."""
        raise TypeError("the figures of a translation do not follow from logits")

    def tensors(self) -> Sequence[torch.Tensor]:
        """What is to be summed over the ranks, in place."""
        return [self._rows, *([self._made] if self._shown else []), *self._of_made.values(), *self._of_real.values()]

    def result(self) -> Evaluation:
        """The means over the samples, and of each class in the details."""
        rows = self._rows.cpu()
        seen = rows[rows[:, 0] > 0]

        def means(of: torch.Tensor) -> list[float]:
            found: list[float] = (of.sum(dim=0) / max(1, len(of))).tolist()
            return found

        _, loss, psnr, mae, *losses = means(seen)
        details: dict[str, Any] = {
            "kind": self._task.kind, "samples": len(seen), "losses": dict(zip(self._names, losses, strict=True)), "ways": {},
        }  # fmt: skip
        for label, name in enumerate(self._task.classes):
            own = seen[seen[:, 0] == label + 1]
            _, _, own_psnr, own_mae, *_ = means(own)
            details["ways"][name] = {"samples": len(own), "cycle_psnr": own_psnr, "cycle_mae": own_mae}
        sheet = None
        if self._shown:
            sheet = Sheet(self._made.flatten(0, 1), _WORDS * len(self._made), len(_WORDS))
        metrics = {"loss": loss, "cycle_psnr": psnr, "cycle_mae": mae, **self._like(rows[:, 0])}
        if self._likeness is not None:
            details["fidelity"] = {"features": self._likeness.judge.name}
        return Evaluation(metrics, details, sheet)

    def _like(self, labels: torch.Tensor) -> dict[str, float]:
        """How like the second class is what was made of the first, and the other way round; `labels`: the class and 1, or 0."""
        likeness = self._likeness
        if likeness is None:
            return {}
        first, second = labels == 1, labels == 2
        there = bool(first.any()) and bool(second.any())
        if self._of_real and there:
            one, other = ({layer: found[of] for layer, found in self._of_real.items()} for of in (first, second))
            likeness.real = (one, other)
        if likeness.real is None or not there:
            return {f"{name}_{way}": math.nan for way in ("forth", "back") for name in likeness.config.names}
        metrics: dict[str, float] = {}
        for way, of, real in (("forth", first, likeness.real[1]), ("back", second, likeness.real[0])):
            made = {layer: found[of] for layer, found in self._of_made.items()}
            found = distances(likeness.config, made, real, likeness.judge.layers)
            metrics |= {f"{name}_{way}": value for name, value in found.items()}
        return metrics
