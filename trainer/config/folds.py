"""Which samples are held back: folds, groups and shares; pure functions of the samples' keys and the seed."""

from __future__ import annotations

import math
import re
from collections import Counter
from collections.abc import Sequence
from typing import Protocol

from trainer.config.errors import UserError


class Sample(Protocol):
    """What is looked at in a listing's item."""

    @property
    def key(self) -> str: ...
    @property
    def label(self) -> int: ...
    @property
    def group(self) -> str: ...


def fraction(count: int, share: float) -> int:
    """So many of `count` samples for a share: rounded, at least one; a larger share never gives fewer."""
    return max(1, math.floor(share * count + 0.5))


def groups_of(items: Sequence[Sample]) -> bool:
    """Whether the samples have groups that must stay together."""
    return any(item.group for item in items)


def parts(text: str) -> tuple[int, int]:
    """(number of the fold from 0, folds) of `fold:2/5`. Raises UserError."""
    match = re.fullmatch(r"fold:([0-9]{1,4})/([0-9]{1,4})", text)
    number, count = (int(match[1]), int(match[2])) if match else (0, 0)
    if count < 2 or not 1 <= number <= count:
        raise UserError(f"data.val is '{text}': write the number of the part and of the parts, such as fold:1/5 to fold:5/5")
    return number - 1, count


def folded(items: Sequence[Sample], drawn: Sequence[Sequence[Sample]], text: str) -> set[str]:
    """The keys of one fold: over all folds each key once, and each class (each part's size too) spread to within one sample.

    `drawn` holds each class in an order drawn by chance. With groups, a group is in one fold, and the classes are spread as
    evenly as the groups allow: the largest groups first, each to the fold that has least of its classes. Raises UserError.
    """
    number, count = parts(text)
    if groups_of(items):
        return _grouped(drawn, number, count)
    held: set[str] = set()
    start = 0
    for samples in drawn:
        held.update(item.key for place, item in enumerate(samples) if (start + place) % count == number)
        start += len(samples)
    return held


def _members(drawn: Sequence[Sequence[Sample]]) -> dict[str, list[Sample]]:
    """The samples of each group, the groups in the order in which they were drawn."""
    found: dict[str, list[Sample]] = {}
    for samples in drawn:
        for item in samples:
            found.setdefault(item.group or f"\0{item.key}", []).append(item)
    return found


def _grouped(drawn: Sequence[Sequence[Sample]], number: int, count: int) -> set[str]:
    groups = sorted(_members(drawn).values(), key=len, reverse=True)  # stable: equal sizes stay as they were drawn
    if len(groups) < count:
        raise UserError(f"data.val: there are {len(groups)} groups, too few for {count} folds; write fewer")
    loads = [[0.0] * len(drawn) for _ in range(count)]
    sizes = [0] * count
    held: set[str] = set()
    for members in groups:
        shares = {label: n / max(1, len(drawn[label])) for label, n in Counter(item.label for item in members).items()}

        def cost(fold: int, shares: dict[int, float] = shares) -> tuple[float, int]:
            return sum(loads[fold][label] * share for label, share in shares.items()), sizes[fold]

        best = min(range(count), key=cost)
        for label, share in shares.items():
            loads[best][label] += share
        sizes[best] += len(members)
        if best == number:
            held.update(item.key for item in members)
    return held


def held_groups(items: Sequence[Sample], drawn: Sequence[Sequence[Sample]], share: float) -> set[str]:
    """The keys of whole groups, drawn by chance, that hold about this share of each class."""
    wanted = [share * len(samples) for samples in drawn]
    taken = [0] * len(drawn)
    held: set[str] = set()
    for members in _members(drawn).values():
        counts = Counter(item.label for item in members)
        # a group is taken while that brings the shares of its classes nearer than leaving it
        nearer = sum(abs(wanted[c] - taken[c]) - abs(wanted[c] - taken[c] - n) for c, n in counts.items())
        if nearer > 0:
            held.update(item.key for item in members)
            for label, n in counts.items():
                taken[label] += n
    return held
