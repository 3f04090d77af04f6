"""How often a sample is wanted in an epoch; the epoch keeps its length."""

from __future__ import annotations

import math

from trainer.config.data import Balanced, Data, Weighted
from trainer.config.errors import UserError, nearest
from trainer.config.sources.listing import Listing


def rates(listing: Listing, data: Data) -> list[float] | None:
    """How often each sample comes in an epoch on average, with sum n; none for a plain epoch, where each comes once.

    Where there are several targets, the classes are those of the first with classes, and samples without one count as a class of
    their own. Raises UserError for a class that there is not, or that would never come.
    """
    sampling = data.sampling
    counts = listing.counts()
    if isinstance(sampling, Balanced):
        if not listing.classes:
            raise UserError(
                "data.sampling: balanced makes classes come alike, and data.train has no classes; write a weight for each image "
                "in a column, and sampling: {kind: weighted} with csv:FILE?weight=COLUMN"
            )
        counts.append(len(listing.items) - sum(counts))  # label -1
        weights = [count ** (sampling.power - 1) if count else 0.0 for count in counts]
        wanted = [weights[item.label] for item in listing.items]
    elif isinstance(sampling, Weighted):
        for name in sampling.classes:
            if name not in listing.classes:
                raise UserError(f"data.sampling.classes: '{name}' is not in data.train{nearest(name, listing.classes)}")
        weights = [*(sampling.classes.get(name, 1.0) for name in listing.classes), 1.0]
        wanted = [weights[item.label] * item.weight for item in listing.items]
        if not sampling.classes and all(item.weight == 1.0 for item in listing.items):
            raise UserError(
                "data.sampling is weighted, but no weight is given; write data.sampling.classes: {CLASS: WEIGHT}, "
                "or name a column with weights, such as csv:FILE?weight=COLUMN"
            )
    else:
        return None
    total = math.fsum(wanted)
    if not 0 < total < math.inf:
        raise UserError("data.sampling: the weights are all 0; give those that should come one above 0")
    found = [weight / total * len(wanted) for weight in wanted]
    came = expected(listing, found)
    for name, often in zip(listing.classes, came, strict=True):
        if not often:
            raise UserError(
                f"data.sampling: class '{name}' has the weight 0 and would never come; leave it out with data.classes, "
                "or give it a weight above 0"
            )
    return found


def expected(listing: Listing, found: list[float]) -> list[float]:
    """Samples of each class in an epoch, on average."""
    sums = [0.0] * (len(listing.classes) + 1)
    for item, rate in zip(listing.items, found, strict=True):
        sums[item.label] += rate
    return sums[:-1]
