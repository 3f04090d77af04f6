"""Whether a classifier is right as often as it says."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch

BINS = 15  # as in Guo et al. 2017


@dataclass(frozen=True)
class Bin:
    """The answers of one range of confidence: their mean confidence, the share that is right, and how many they are."""

    confidence: float
    accuracy: float
    samples: int


def reliability(confidence: torch.Tensor, right: torch.Tensor, bins: int = BINS) -> list[Bin]:
    """The diagram of reliability (DeGroot and Fienberg 1983): bins of equal width over the confidence in the answer, each [n].

    A confidence at a border belongs to the bin below it, 0 to the first. Bins without an answer are left out.
    """
    place = (confidence.double() * bins).ceil().long().clamp(1, bins) - 1
    counts = torch.bincount(place, minlength=bins)
    sums = torch.zeros(2, bins, dtype=torch.float64)
    sums[0].index_add_(0, place, confidence.double())
    sums[1].index_add_(0, place, right.double())
    return [Bin(float(sums[0, i]) / count, float(sums[1, i]) / count, count) for i, count in enumerate(counts.tolist()) if count]


def calibration_error(bins: Sequence[Bin]) -> float:
    """The expected calibration error (Naeini et al. 2015; Guo et al. 2017, equation 3); 0 without samples."""
    samples = sum(b.samples for b in bins)
    return sum(b.samples * abs(b.accuracy - b.confidence) for b in bins) / max(1, samples)


def brier(shares: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
    """The score of Brier (1950) of each sample, [n], from 0 to 2: squared distance of the shares [n, classes] from the truth."""
    shares = shares.double()
    chosen = shares.gather(1, labels[:, None]).squeeze(1)
    return shares.square().sum(dim=1) - 2 * chosen + 1
