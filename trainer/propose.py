"""How a run fits a card: the largest micro-batch, the least accumulation, and else how many GPUs would have to share it."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import asdict, dataclass
from typing import Any

from trainer.config.arithmetic import micro_batches
from trainer.config.footprint import Card, Fit, Footprint, fit
from trainer.config.parallel import Kind, Parallel
from trainer.forecast import Forecast

_MOST = 1024  # GPUs that are thought of
_KINDS: tuple[Kind, ...] = ("zero1", "zero2", "zero3", "fsdp")


@dataclass(frozen=True)
class Proposal:
    """A micro-batch that fits, with the passes of a step and what was worked out of it; or none fits, not even of one sample.

    `shared`: by kind the least number of GPUs on which one sample fits, where that is more than the run has; by arithmetic alone.
    """

    card: str
    micro_batch: int | None
    accumulation: int | None
    fit: Fit
    shared: dict[str, int]

    def as_json(self) -> dict[str, Any]:
        return asdict(self)


def propose(forecast: Forecast, known: Footprint, card: Card, parallel: Parallel, world: int, share: int) -> Proposal:
    """Look for the micro-batch of a rank's `share`; `known`: one footprint of it. Raises NotForetoldError.

    Which one it may be is told by the two that are known, since activations grow with the samples; what is proposed was followed
    itself.
    """
    other = forecast(max(1, known.micro_batch // 2) if known.micro_batch > 1 else min(2, share), share)
    first, last = sorted((known, other), key=lambda found: found.micro_batch)
    between = last.micro_batch - first.micro_batch
    slope = (last.rank(parallel, world) - first.rank(parallel, world)) / between if between else 0.0
    base = last.rank(parallel, world) - slope * last.micro_batch
    spare = 0.99 * (card.gib * 2**30 - (fit(last, card, parallel, world).high - 1.1 * last.rank(parallel, world)))
    tried = last
    for size, passes in _sizes(share):
        if size > 1 and 1.1 * (base + slope * size) > spare:
            continue
        tried = known if size == known.micro_batch else forecast(size, share)
        found = fit(tried, card, parallel, world)
        if found.answer == "fits":
            return Proposal(card.name, size, passes, found, {})
    return Proposal(card.name, None, None, fit(tried, card, parallel, world), _shared(tried, card, world))


def _sizes(share: int) -> Iterator[tuple[int, int]]:
    """The micro-batches that a share can be cut into, each with its number: 1, 2, 3, 4, 6, 8, 12 …; down to one sample."""
    passes, seen = 1, 0
    while True:
        sizes = micro_batches(share, -(-share // passes))
        if sizes[0] != seen:
            yield sizes[0], len(sizes)
        seen = sizes[0]
        if seen == 1:
            return
        passes = passes + 1 if passes < 4 else passes * 3 // 2 if passes & (passes - 1) == 0 else passes * 4 // 3


def _shared(found: Footprint, card: Card, world: int) -> dict[str, int]:
    shared: dict[str, int] = {}
    for kind in _KINDS:
        ranks = max(2, world)
        while ranks <= _MOST:
            if fit(found, card, Parallel(kind=kind), ranks).answer == "fits":
                shared[kind] = ranks
                break
            ranks *= 2
    return shared
