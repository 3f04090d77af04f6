"""The tables of class embeddings of a conditional generator, given other classes by the rule of a head's rows."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import nn

from trainer.config import UserError
from trainer.config.adapt import Adapt
from trainer.models.base import Checkpoint
from trainer.models.place import Place
from trainer.models.rows import rows

_SPREAD = 0.02  # deviation of a table that is new on a trained network (Peebles and Xie 2023)
_TABLES = ("class_embedding", "class_embedder.embedding_table", "class_embeddings")


def class_tables(network: nn.Module) -> tuple[str, ...]:
    """The tables of class embeddings [classes, width], by dotted name.

    `class_embedding` of a UNet, the table in every block of a DiT (Peebles and Xie 2023).
    """
    named = network.named_modules()
    return tuple(name for name, module in named if isinstance(module, nn.Embedding) and name.endswith(_TABLES))


def class_names(source: str) -> tuple[str, ...] | None:
    """The class names that a pipeline (`FOLDER` or `owner/name`, with or without `#PART`) gives as `id2label`; none without.

    Of several names of a class, separated by commas, it is the first. Raises UserError for an `id2label` that is none.
    """
    place = Place.of(source.partition("#")[0])
    found = (place.json("model_index.json") or {}).get("id2label")
    if not found:
        return None
    try:
        by_number = {int(key): str(value).partition(",")[0].strip() for key, value in found.items()}
    except (AttributeError, ValueError):
        raise UserError(f"{place.name}: id2label in model_index.json does not give a name for each number of a class") from None
    if sorted(by_number) != list(range(len(by_number))):
        raise UserError(f"{place.name}: id2label in model_index.json has {len(by_number)} classes that are not numbered from 0")
    return tuple(by_number[index] for index in range(len(by_number)))


@dataclass(frozen=True)
class Table:
    """The class tables of a checkpoint: their rows, the names of its classes where those are known, and whether the last row
    stands for no class (none: not known)."""

    rows: int
    classes: tuple[str, ...] | None = None
    dropped: bool | None = None


@dataclass(frozen=True)
class TableRows:
    """For each row of a new table the row of the old one that it takes (none: a new one), and what that means.

    No `picks` at all: there was no table. `known`: so many of the old rows are of classes.
    """

    picks: tuple[int | None, ...]
    told: str | None
    new_rows: str
    known: int = 0

    def of(self, value: torch.Tensor, generator: torch.Generator) -> torch.Tensor:
        """The new table. A new row is drawn with the mean and deviation of the old classes' rows, is zero, or their mean."""
        if not any(pick is None for pick in self.picks):
            return torch.stack([value[pick] for pick in self.picks])
        old = value.float()[: self.known]
        mean, spread = old.mean(dim=0), old.std(dim=0, correction=0)
        drawn = mean + spread * torch.randn(len(self.picks), value.shape[1], generator=generator)
        begun = {"random": drawn, "zero": torch.zeros_like(drawn), "mean": mean.expand_as(drawn)}[self.new_rows]
        found = [begun[row].to(value.dtype) if pick is None else value[pick] for row, pick in enumerate(self.picks)]
        return torch.stack(found)

    @property
    def fresh(self) -> bool:
        """Whether no class has an old row."""
        return all(pick is None or (pick >= self.known and len(self.picks) > 1) for pick in self.picks)

    def begin(self, target: torch.Tensor, generator: torch.Generator) -> torch.Tensor:
        """A table that the weights have not: so small that the network does nearly what it did."""
        return torch.randn(target.shape, generator=generator) * (0.0 if self.new_rows == "zero" else _SPREAD)


def table_rows(table: Table | None, classes: tuple[str, ...], spare: bool, adapt: Adapt, source: str) -> TableRows:
    """Match the classes by name, as the rows of a classifier's head; `spare`: the new table has a last row for no class, too.

    A row more than there are names stands for no class at all (classifier-free guidance, Ho and Salimans 2022) and stays it,
    whatever the classes. `adapt.head`, `rename`, `like` and `new_rows` mean what they mean for a head. Raises UserError for names
    that the weights do not have or that do not fit the table, or where nothing can be kept as was asked.
    """
    settings = adapt.of("")
    new_rows = settings.new_rows or "random"
    if table is None:
        return TableRows((), None, new_rows)
    dropped = table.dropped
    if dropped is None:
        dropped = table.rows == len(classes if table.classes is None else table.classes) + 1
    count = table.rows - dropped
    if table.classes is not None and len(table.classes) != count:
        raise UserError(
            f"{source}: has {table.rows} rows of class embeddings and {len(table.classes)} class names; there may be "
            "one row more, for no class"
        )
    if not classes:
        return TableRows((count if dropped else None,) if spare else (), "the row for no class alone", new_rows, count)
    try:
        found = rows(Checkpoint(source, {}, table.classes), {count}, settings, classes)
    except UserError as error:
        raise UserError(str(error).replace("the head of", "the class table of")) from None
    picks = found.picks or (None,) * len(classes)
    last = (count if dropped else None,) if spare else ()
    same = picks == tuple(range(count)) and len(picks) + len(last) == table.rows
    told = None if same else found.told or ("rows of the same classes" if found.picks else None)
    return TableRows((*picks, *last), told, new_rows, count)
