"""Which rows of a pretrained head the classes of a task get."""

from __future__ import annotations

import logging
from dataclasses import dataclass

import torch

from trainer.config import UserError, nearest
from trainer.config.heads import OneHead
from trainer.models.base import Checkpoint

log = logging.getLogger("graft")


@dataclass(frozen=True)
class Rows:
    """For each class of the task the row of the checkpoint's head that it takes (none: a new one), and what that means.

    No `picks` at all: the head is new.
    """

    picks: tuple[int | None, ...] = ()
    told: str | None = None

    def of(self, value: torch.Tensor, target: torch.Tensor, new_rows: str) -> torch.Tensor:
        """A head's weight or bias: rows of `value` where they are known, else as `target` has them, zero, or the mean."""
        picked = target.clone()
        for row, source in enumerate(self.picks):
            if source is not None:
                picked[row] = value[source]
            elif new_rows == "zero":
                picked[row] = 0
            elif new_rows == "mean":
                picked[row] = value.float().mean(dim=0).to(picked.dtype)
        return picked


def rows(
    checkpoint: Checkpoint, counts: set[int], settings: OneHead, classes: tuple[str, ...], where: str = "model.adapt", *,
    lone: bool = True,
) -> Rows:  # fmt: skip
    """Match the classes of a head by name. `counts`: the rows that the checkpoint has of it; none: it has no such head.

    Equal counts without known names are taken for equal classes, but not of official weights, and not for one of several heads
    (`lone`). `where`: the settings in the run file. Raises UserError for names that the weights do not have or have twice, or
    where nothing can be kept as was asked.
    """
    count = counts.pop() if len(counts) == 1 else None
    asked = bool(settings.like or settings.rename or settings.head == "shared")
    if settings.head == "new" or (count is None and settings.head == "auto" and not asked):
        return Rows()
    if count is None:
        said = settings.head if settings.head != "auto" else "auto with like or rename"
        raise UserError(
            f"{where}.head: {said}, but {checkpoint.source} holds no head for this network, of the same layers; write auto or new"
        )
    names = checkpoint.classes if checkpoint.classes is not None and len(checkpoint.classes) == count else None
    straight = tuple(range(count))
    if names == classes:
        return Rows(straight)
    if asked:
        return _asked(checkpoint, names, settings, classes, where)
    if names is not None and len(set(names)) == count and set(names) == set(classes):
        return Rows(tuple(names.index(c) for c in classes), "classes put into the order of the task")
    if settings.head == "keep":
        if count != len(classes):
            raise UserError(
                f"{where}.head: keep, but the head of {checkpoint.source} has {count} classes and the task has "
                f"{len(classes)}; write auto or new"
            )
        return Rows(straight)
    if names is None:
        if count != len(classes) or checkpoint.official or not lone:
            return Rows()
        log.warning(
            "%s does not name its %d classes, as many as the task has: its head is kept; if they are others, write "
            "model.adapt.head: new", checkpoint.source, count,
        )  # fmt: skip
        return Rows(straight)
    if checkpoint.official:
        return Rows()
    found = _shared(names, classes, {}, {})
    return found if any(pick is not None for pick in found.picks) else Rows()


def _asked(
    checkpoint: Checkpoint, names: tuple[str, ...] | None, settings: OneHead, classes: tuple[str, ...], where: str
) -> Rows:
    """Rows by the names that the run file gives."""
    if names is None:
        raise UserError(f"{where}: rows are kept by name, and {checkpoint.source} does not name its classes")
    wanted = {*classes, *settings.like.values(), *settings.rename.values()}
    twice = sorted({name for name in names if names.count(name) > 1} & wanted)
    if twice:
        raise UserError(f"{where}: {checkpoint.source} has the class '{twice[0]}' more than once; rename tells no two apart")
    for key, mapping in (("like", settings.like), ("rename", settings.rename)):
        for name, old in mapping.items():
            if name not in classes:
                raise UserError(f"{where}.{key}: the task has no class '{name}'{nearest(name, classes)}")
            if old not in names:
                raise UserError(f"{where}.{key}: {checkpoint.source} has no class '{old}'{nearest(old, names)}")
    found = _shared(names, classes, settings.rename, settings.like)
    if all(pick is None for pick in found.picks):
        raise UserError(
            f"{where}.head: shared, and {checkpoint.source} shares no class with the task "
            f"(it has {', '.join(names[:3])} …); write rename: {{{classes[0]}: …}}, or head: new"
        )
    return found


def _shared(names: tuple[str, ...], classes: tuple[str, ...], rename: dict[str, str], like: dict[str, str]) -> Rows:
    """Rows by name; a name that the weights have twice says nothing."""
    row = {name: index for index, name in enumerate(names) if names.count(name) == 1}
    same = {c: rename.get(c, c) for c in classes}
    picked = [row[same[c]] if same[c] in row else row[like[c]] if c in like else None for c in classes]
    kept = sum(same[c] in row for c in classes)
    begun = sum(same[c] not in row and c in like for c in classes)
    also = f", {begun} begun like others" if begun else ""
    return Rows(tuple(picked), f"{kept} of {len(classes)} classes kept{also}")
