"""How like the data generated images are: features of both, over exactly so many on any number of ranks, and their distances."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

import numpy as np
import torch

from trainer.config.fidelity import Distances, Fidelity
from trainer.pixels import pixels
from trainer.spec import Judge
from trainer.tasks.base import Batch

_SUBSETS, _SUBSET = 100, 1000  # of the kernel distance: how many, of how many images at most
_SEED = 2020  # what torch-fidelity draws its subsets by
Make = Callable[[Sequence[int], Sequence[int]], torch.Tensor]


class Likeness:
    """What a run compares with: a judge, and the features of the data, which are computed at the first evaluation."""

    def __init__(self, config: Fidelity, judge: Judge, counts: Sequence[int]) -> None:
        self.config, self.judge = config, judge
        self.real: dict[str, torch.Tensor] | None = None
        self._counts = list(counts)

    def classes(self) -> list[int]:
        """The class of each image to be made: as often as in the training data, to within one."""
        if not self._counts:
            return [0] * self.config.samples
        ends = np.cumsum(self._counts) / sum(self._counts)
        places = (np.arange(self.config.samples) + 0.5) / self.config.samples
        return [int(index) for index in np.searchsorted(ends, places)]


class LikenessMeasure:
    """One evaluation of it. Features of images that this rank did not see stay zero, until the ranks are summed up."""

    def __init__(self, likeness: Likeness) -> None:
        self._likeness = likeness
        self._made: dict[str, torch.Tensor] = {}
        self._real: dict[str, torch.Tensor] = {}
        self._there = torch.zeros(0, dtype=torch.uint8)

    def refer(self, batches: Iterable[Batch], count: int) -> None:
        """Take in this rank's share of `count` images of the data, normalised to [-1, 1]."""
        self._there = torch.zeros(count, dtype=torch.uint8)
        self._real = self._empty(count)
        for batch in batches:
            rows = batch.indices.cpu()
            for layer, found in self._likeness.judge(pixels(batch.images)).items():
                self._real[layer][rows] = found
            self._there[rows] = 1

    def make(self, make: Make, first: int, batch: int, rank: int, world: int) -> None:
        """Make this rank's share of the images: always the same ones at once."""
        classes = self._likeness.classes()
        self._made = self._empty(len(classes))
        for start in range(rank * batch, len(classes), world * batch):
            part = classes[start : start + batch]
            images = make(range(first + start, first + start + len(part)), part)
            for layer, found in self._likeness.judge(images).items():
                self._made[layer][start : start + len(part)] = found

    def _empty(self, count: int) -> dict[str, torch.Tensor]:
        return {layer: torch.zeros(count, width) for layer, width in self._likeness.judge.widths.items()}

    def tensors(self) -> list[torch.Tensor]:
        """What is to be summed over the ranks."""
        return [*self._made.values(), *self._real.values(), self._there]

    def result(self) -> tuple[dict[str, float], dict[str, Any]]:
        """The metrics, and what they are of. Every rank works them out, of the same numbers."""
        likeness = self._likeness
        if self._real:
            present = self._there.bool()
            likeness.real = {layer: found[present] for layer, found in self._real.items()}
        if not self._made or likeness.real is None:
            return dict.fromkeys(likeness.config.names, math.nan), {}
        real = next(iter(likeness.real.values()))
        about = {"samples": likeness.config.samples, "real": len(real), "features": likeness.judge.name}
        return distances(likeness.config, self._made, likeness.real, likeness.judge.layers), {"fidelity": about}


def distances(
    config: Distances, made: Mapping[str, torch.Tensor], real: Mapping[str, torch.Tensor], layers: Mapping[str, str]
) -> dict[str, float]:
    """The metrics by name, of features [n, d] a layer; `layers` says which of them each is measured with."""
    from torch_fidelity import metric_fid, metric_isc, metric_kid, metric_prc

    found: dict[str, float] = {}
    for asked in config.measure:
        one, other = made[layers[asked]], real[layers[asked]]
        if asked == "fid":
            given = (metric_fid.fid_features_to_statistics(part) for part in (one, other))
            values = [metric_fid.fid_statistics_to_metric(*given, False)[metric_fid.KEY_METRIC_FID]]
        elif asked == "kid":
            size = min(_SUBSET, len(one), len(other))
            kernel = metric_kid.kid_features_to_metric(
                one, other, kid_subsets=_SUBSETS, kid_subset_size=size, rng_seed=_SEED, verbose=False
            )
            values = [kernel[metric_kid.KEY_METRIC_KID_MEAN]]
        elif asked == "precision_recall":
            shares = metric_prc.prc_features_to_metric(one, other, verbose=False)
            values = [float(shares[metric_prc.KEY_METRIC_PRECISION]), float(shares[metric_prc.KEY_METRIC_RECALL])]
        else:
            values = [metric_isc.isc_features_to_metric(one, rng_seed=_SEED)[metric_isc.KEY_METRIC_ISC_MEAN]]
        for name in config.model_copy(update={"measure": [asked]}).names:
            found[name] = float(values.pop(0))
    return found
