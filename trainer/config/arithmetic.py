"""The arithmetic of batches and steps: one place for the plan, which shows it, and the loop, which does it."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from typing import Literal

from trainer.config.amounts import Amount
from trainer.config.errors import UserError
from trainer.config.run import Train


def rank_shares(global_batch: int, world_size: int) -> tuple[int, ...]:
    """The samples of one optimizer step that each rank takes; they differ by at most one and add up to the global batch."""
    if global_batch < world_size:
        raise UserError(
            f"train.global_batch is {global_batch} and there are {world_size} ranks: {global_batch} / {world_size} is less than "
            f"one sample a rank; write train.global_batch={world_size} or more, or parallel.processes={global_batch} or fewer"
        )
    least, more = divmod(global_batch, world_size)
    return tuple(least + (rank < more) for rank in range(world_size))


def micro_batches(share: int, micro_batch: int | Literal["auto"], *, passes: int = 1) -> tuple[int, ...]:
    """The sizes of the forward passes that make up a rank's share of a step: as few as fit, and as even as they can be; at least
    `passes`, as the rank with the largest share makes, where there are so many samples."""
    size = share if micro_batch == "auto" else min(micro_batch, share)
    count = max(-(-share // size), min(passes, share))
    least, more = divmod(share, count)
    return tuple(least + (index < more) for index in range(count))


def micro_sizes(share: int) -> Iterator[tuple[int, int]]:
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


def smaller(size: int, shares: Sequence[int], *, alike: bool) -> int | None:
    """The next smaller micro-batch of the ranks' shares; none below one sample. `alike`: every rank makes as many passes as the
    first, and has to have a sample for each."""
    found = next(((less, passes) for less, passes in micro_sizes(shares[0]) if less < size), None)
    return None if found is None or (alike and found[1] > shares[-1]) else found[0]


def total_steps(train: Train, epoch_samples: int) -> int:
    """Optimizer steps of the whole run: as asked, or as many full batches as cover the epochs."""
    if train.steps is not None:
        return train.steps
    wanted = math.ceil(round(train.epochs * epoch_samples, 6))  # 0.1 epochs of 30 samples are 3, not 3.0000000000000004
    return max(1, -(-wanted // train.global_batch))


def occasions(every: Amount, *, steps: int, global_batch: int, epoch_samples: int) -> int | None:
    """How often something happens that is due `every` so much training and at the last step; none for a time."""
    if every.unit == "second":
        return None
    apart = every.samples(epoch_samples=epoch_samples, step_samples=global_batch)
    if apart <= global_batch:
        return steps
    times = steps * global_batch // apart
    return times + (math.ceil(times * apart / global_batch) < steps)
