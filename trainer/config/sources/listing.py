"""Lists of samples: read from a source, cut to classes, split and counted; pure functions of the source and the seed."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from trainer.config.run import Data


@dataclass(frozen=True)
class Item:
    """One sample: its path below the listing's root (or its number, for digits) and its class."""

    key: str
    label: int


@dataclass(frozen=True)
class Listing:
    """The samples of a source, sorted by key, and the names of their classes."""

    scheme: str
    root: Path
    classes: tuple[str, ...]
    items: tuple[Item, ...]

    def counts(self) -> list[int]:
        """Samples a class."""
        counts = [0] * len(self.classes)
        for item in self.items:
            counts[item.label] += 1
        return counts

    def fingerprint(self) -> str:
        """A sha256 of what the listing says (classes, keys, labels and, for files, their sizes); not of the pixels."""
        raise NotImplementedError


@dataclass(frozen=True)
class Splits:
    """The training and validation samples with the same classes in the same order."""

    train: Listing
    val: Listing | None


def open_source(source: str, classes: tuple[str, ...] | None = None) -> Listing:
    """List `scheme:rest`; with `classes`, labels are matched to them by name. Raises UserError."""
    raise NotImplementedError


def open_splits(data: Data, seed: int) -> Splits:
    """The samples of a run, checked: raises UserError that names the class, the folder or the row."""
    raise NotImplementedError
