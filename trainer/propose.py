"""How a run fits a card: the largest micro-batch, the least accumulation, and else how many GPUs would have to share it."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import asdict, dataclass
from typing import Any

from trainer.config import Run
from trainer.config.arithmetic import micro_sizes
from trainer.config.compute import unfit
from trainer.config.footprint import GIB, Card, Fit, Footprint, allowed, fit
from trainer.config.parallel import Kind, Parallel
from trainer.config.sharding import refused

_MOST = 1024  # GPUs that are thought of, or eight times those of a larger run
_KINDS: tuple[Kind, ...] = ("zero1", "zero2", "zero3", "fsdp")


@dataclass(frozen=True)
class Proposal:
    """A micro-batch that fits, with the passes of a step and what was worked out of it; or none fits, not even of one sample.

    `shared`: by kind that the run can take the fewest GPUs on which one sample fits, of those it has (two at least) and powers of
    two times as many; by arithmetic alone.
    """

    card: str
    micro_batch: int | None
    accumulation: int | None
    fit: Fit
    shared: dict[str, int]

    def as_json(self) -> dict[str, Any]:
        return asdict(self)


def propose(
    run: Run, forecast: Callable[[int, int], Footprint], known: Footprint, card: Card, world: int, share: int
) -> Proposal:  # fmt: skip
    """Look for the micro-batch of a rank's `share`; `known`: one footprint of it. Raises NotForetoldError.

    Which one it may be is told by the two that are known, since activations grow with the samples; what is proposed was followed
    itself.
    """
    parallel = run.parallel
    other = forecast(max(1, known.micro_batch // 2) if known.micro_batch > 1 else min(2, share), share)
    first, last = sorted((known, other), key=lambda found: found.micro_batch)
    between = last.micro_batch - first.micro_batch
    slope = (last.rank(parallel, world) - first.rank(parallel, world)) / between if between else 0.0
    base = last.rank(parallel, world) - slope * last.micro_batch
    tried = last
    for size, passes in micro_sizes(share):
        if size > 1 and allowed(base + slope * size, parallel, world)[1] > 1.01 * card.gib * GIB:
            continue  # by more than activations that do not quite grow in proportion may be off
        tried = known if size == known.micro_batch else forecast(size, share)
        found = fit(tried, card, parallel, world)
        if found.answer == "fits":
            return Proposal(card.name, size, passes, found, {})
    return Proposal(card.name, None, None, fit(tried, card, parallel, world), _shared(run, tried, card, world))


def _shared(run: Run, found: Footprint, card: Card, world: int) -> dict[str, int]:
    shared: dict[str, int] = {}
    for kind in _KINDS:
        parallel = run.parallel if run.parallel.kind == kind else Parallel(kind=kind)
        asked = run.model_copy(update={"parallel": parallel})
        if refused(asked) or unfit(asked):
            continue
        ranks = max(2, world)
        while ranks <= min(max(_MOST, 8 * world), run.train.global_batch):  # each wants a sample of a step
            if fit(found, card, parallel, ranks).answer == "fits":
                shared[kind] = ranks
                break
            ranks *= 2
    return shared
