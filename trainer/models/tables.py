"""Which rows of a generator's class table the classes of a task get."""

from __future__ import annotations

from dataclasses import dataclass

import torch

from trainer.config import UserError
from trainer.config.adapt import Adapt
from trainer.models.adapt import seeded
from trainer.models.base import Checkpoint
from trainer.models.rows import rows

_SPREAD = 0.02  # deviation of a table that is new on a trained network (Peebles and Xie 2023)


@dataclass(frozen=True)
class Table:
    """The class table of a checkpoint: its rows, the names of its classes where they are known, and whether its last row stands
    for no class (none: not known)."""

    rows: int
    classes: tuple[str, ...] | None = None
    dropped: bool | None = None


@dataclass(frozen=True)
class TableRows:
    """For each row of the new table the row of the old one that it takes (none: a new one), and what that means.

    No `picks` at all: the table is new.
    """

    picks: tuple[int | None, ...]
    told: str | None
    new_rows: str

    def of(self, value: torch.Tensor, target: torch.Tensor, seed: int) -> torch.Tensor:
        """The new table. A new row is drawn with the mean and the deviation of the old rows, is zero, or their mean."""
        old = value.float()
        mean, spread = old.mean(dim=0), old.std(dim=0, correction=0)
        with seeded(seed):
            drawn = mean + spread * torch.randn(target.shape)
        begun = {"random": drawn, "zero": torch.zeros_like(drawn), "mean": mean.expand_as(drawn)}[self.new_rows]
        found = [begun[row] if pick is None else old[pick] for row, pick in enumerate(self.picks)]
        return torch.stack(found).to(value.dtype)

    def begin(self, target: torch.Tensor, seed: int) -> torch.Tensor:
        """A table that the weights have not: so small that the network does nearly what it did."""
        with seeded(seed):
            return torch.randn(target.shape) * (0.0 if self.new_rows == "zero" else _SPREAD)


def table_rows(table: Table | None, classes: tuple[str, ...], spare: bool, adapt: Adapt, source: str) -> TableRows:
    """Match the classes by name, as the rows of a classifier's head; `spare`: the new table has a last row for no class, too.

    Raises UserError for names that the weights do not have, or where nothing can be kept as was asked.
    """
    if table is None or not classes:
        return TableRows((), None, adapt.new_rows)
    dropped = table.dropped
    if dropped is None:  # one row too many can only be that for no class
        dropped = table.rows == len(classes if table.classes is None else table.classes) + 1
    count = table.rows - dropped
    named = Checkpoint(source, {}, table.classes if table.classes is not None and len(table.classes) == count else None)
    try:
        found = rows(named, {count}, adapt, classes)
    except UserError as error:
        raise UserError(str(error).replace("head of", "class table of")) from None
    if not found.picks:
        return TableRows((), None, adapt.new_rows)
    last = (count if dropped else None,) if spare else ()
    same = found.told is None and len(found.picks) + len(last) == table.rows and last in ((), (count,))
    return TableRows((*found.picks, *last), None if same else found.told or "the same classes", adapt.new_rows)
