"""What is said of an image: one class, labels that go with each other, or numbers; and what a task must know of it."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

from trainer.config.errors import UserError

Kind = Literal["class", "labels", "values"]
LooksAt = Literal["targets", "captions", "nothing"]  # what a task looks at beside the images: classes and such, or a text of each
WORDS: dict[Kind, str] = {"class": "one class", "labels": "labels", "values": "numbers"}
LEARNT_BY: dict[Kind, str] = {"class": "classify", "labels": "multilabel", "values": "regress"}


@dataclass(frozen=True, slots=True)
class Target:
    """One thing that is said of every image: one of `labels` (class), each of them or not (labels), a number for each (values).

    `name` is empty for the class of a source that says nothing else. `listed`: the labels are those that occur in the source, so
    that one which does not occur is on none of its images.
    """

    name: str
    kind: Kind
    labels: tuple[str, ...]
    listed: bool = field(default=False, compare=False)

    @property
    def width(self) -> int:
        """Numbers a sample: the index of its class; 0 or 1 a label; the values."""
        return 1 if self.kind == "class" else len(self.labels)


def columns(targets: Sequence[Target]) -> list[range]:
    """Where each target stands in the values of a sample."""
    found, start = [], 0
    for target in targets:
        found.append(range(start, start + target.width))
        start += target.width
    return found


@dataclass(frozen=True)
class Known:
    """What the training samples say of a target.

    `counts`: the samples of each class, or with each label; `known`: how many samples say something, of each label or value;
    `mean` and `std` (over all that is known, divided by their number) are of each value.
    """

    target: Target
    counts: tuple[int, ...] = ()
    known: tuple[int, ...] = ()
    mean: tuple[float, ...] = ()
    std: tuple[float, ...] = ()


@dataclass(frozen=True)
class Facts:
    """What a task must know of the training samples, to be put together again without them."""

    targets: tuple[Known, ...]

    @classmethod
    def plain(cls, classes: Sequence[str], counts: Sequence[int]) -> Facts:
        """Of samples that have a class each."""
        return cls((Known(Target("", "class", tuple(classes)), tuple(counts), (sum(counts),)),))

    def as_json(self) -> list[dict[str, Any]]:
        return [
            {
                "name": t.target.name, "kind": t.target.kind, "labels": list(t.target.labels), "counts": list(t.counts),
                "known": list(t.known), "mean": list(t.mean), "std": list(t.std),
            }
            for t in self.targets
        ]  # fmt: skip

    @classmethod
    def from_json(cls, value: Sequence[dict[str, Any]]) -> Facts:
        return cls(
            tuple(
                Known(
                    Target(v["name"], v["kind"], tuple(v["labels"])),
                    tuple(v["counts"]), tuple(v["known"]), tuple(v["mean"]), tuple(v["std"]),
                )
                for v in value
            )
        )  # fmt: skip


def known(target: Target, place: range, rows: Sequence[tuple[float, ...]]) -> Known:
    """Count one target over the values of samples."""
    if target.kind == "class":
        indices = [int(row[place.start]) for row in rows if not math.isnan(row[place.start])]
        counts = [0] * len(target.labels)
        for index in indices:
            counts[index] += 1
        return Known(target, tuple(counts), (len(indices),))
    said = [[row[column] for row in rows if not math.isnan(row[column])] for column in place]
    numbers = tuple(len(values) for values in said)
    if target.kind == "labels":
        return Known(target, tuple(round(sum(values)) for values in said), numbers)
    means = [math.fsum(values) / max(1, len(values)) for values in said]
    squares = [math.fsum((v - mean) ** 2 for v in values) / max(1, len(values)) for values, mean in zip(said, means, strict=True)]
    return Known(target, (), numbers, tuple(means), tuple(math.sqrt(square) for square in squares))


def some(facts: Facts, kind: Kind, task: str) -> tuple[Known, ...]:
    """All targets, which are of one kind. Raises UserError where they are not."""
    if any(known.target.kind != kind for known in facts.targets):
        raise UserError(f"task: {task} learns {WORDS[kind]} of an image, and {told(facts)}")
    return facts.targets


def only(facts: Facts, kind: Kind, task: str) -> Known:
    """The one target that there is. Raises UserError where there are several, or it is of another kind."""
    found = some(facts, kind, task)
    if len(found) > 1:
        raise UserError(f"task: {task} learns {WORDS[kind]} of an image, and {told(facts)}")
    return found[0]


def told(facts: Facts) -> str:
    """What the training data says, and which task learns that: the end of a sentence."""
    kinds = {known.target.kind for known in facts.targets}
    names = [f"{k.target.name} ({WORDS[k.target.kind]})" if k.target.name else WORDS[k.target.kind] for k in facts.targets]
    alone = len(facts.targets) == 1 or kinds == {"values"}
    fits = LEARNT_BY[facts.targets[0].target.kind] if alone else "multi"
    shown = ", ".join(names[:6]) + (f" and {len(names) - 6} more" if len(names) > 6 else "")
    return f"data.train says {shown}; write task: {{kind: {fits}}}"
