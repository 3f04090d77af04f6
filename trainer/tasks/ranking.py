"""How well scores put what is there before what is not."""

from __future__ import annotations

import torch


def average_precision(scores: torch.Tensor, present: torch.Tensor, known: torch.Tensor) -> torch.Tensor:
    """[labels] from scores, presences and whether they are known, each [n, labels]: the sum over the thresholds of the gain in
    recall times the precision (as in Salton and McGill 1983; no interpolation). Equal scores are one threshold. 0 without a
    presence.
    """
    found = torch.zeros(scores.shape[1], dtype=torch.float64)
    for label in range(scores.shape[1]):
        given = known[:, label]
        values, there = scores[given, label], present[given, label]
        total = int(there.sum())
        if not total:
            continue
        order = values.argsort(descending=True)
        values, hits = values[order], there[order].double().cumsum(dim=0)
        last = torch.ones(len(values), dtype=torch.bool)
        last[:-1] = values[1:] != values[:-1]  # of the samples that share a score
        hits, taken = hits[last], last.nonzero().squeeze(1) + 1
        gain = hits.diff(prepend=torch.zeros(1, dtype=torch.float64))
        found[label] = (gain * hits / taken).sum() / total
    return found
