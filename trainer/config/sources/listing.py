"""Lists of samples: read from a source, cut to classes, split and counted; pure functions of the source and the seed."""

from __future__ import annotations

import hashlib
import importlib
import os
import pkgutil
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from trainer.config.errors import UserError, nearest
from trainer.config.run import Data


@dataclass(frozen=True, slots=True)
class Item:
    """One sample: its path below the listing's root (or its number, for digits) and its class."""

    key: str
    label: int


@dataclass(frozen=True)
class Listing:
    """The samples of a source, in an order that is the source's alone, and the names of their classes.

    `root` is the folder that the keys are relative to; for `digits` it is the data file and a key is a row of it.
    """

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
        """A sha256 of what the listing says (classes, keys, labels and, for files, their sizes); not of the pixels.

        The root is left out, so that a data set may move. A file that is gone counts as size -1.
        """
        digest = hashlib.sha256()

        def put(*parts: object) -> None:
            for part in parts:
                data = str(part).encode("utf-8", "surrogateescape")
                digest.update(b"%d:" % len(data) + data)

        put(self.scheme, len(self.classes), *self.classes)
        for item in self.items:
            put(item.key, item.label)
            if self.scheme != "digits":
                put(_size(self.root / item.key))
        return digest.hexdigest()


@dataclass(frozen=True)
class Splits:
    """The training and validation samples with the same classes in the same order."""

    train: Listing
    val: Listing | None


def _size(path: Path) -> int:
    try:
        return path.stat().st_size
    except OSError:
        return -1


def open_source(source: str, classes: tuple[str, ...] | None = None) -> Listing:
    """List `scheme:rest`; with `classes`, labels are matched to them by name and any other class is refused. Raises UserError."""
    scheme, _, rest = source.partition(":")
    package = __package__ or ""
    here = importlib.import_module(package)
    schemes = [m.name for m in pkgutil.iter_modules(here.__path__) if m.name != "listing"]
    if scheme not in schemes:
        shown = "" if source == scheme else f" in '{source}'"
        raise UserError(
            f"unknown data source '{scheme}'{shown}{nearest(scheme, schemes)}; write folder:PATH for a folder of classes"
        )
    listing: Listing = importlib.import_module(f"{package}.{scheme}").listing(rest)
    if classes is None:
        return listing
    for name in listing.classes:
        if name not in classes:
            raise UserError(f"{source}: class '{name}' is none of the network's{nearest(name, classes)}")
    return _select(listing, classes)


def open_splits(data: Data, seed: int) -> Splits:
    """The samples of a run, checked: raises UserError that names the class, the folder or the row."""
    train = open_source(data.train)
    if data.classes is not None:
        train = _chosen(train, data.classes)
    if len(train.classes) < 2:
        raise UserError(f"data.train: only one class, '{train.classes[0]}'; a classifier needs two or more")
    if data.val is None:
        kept, val = train, None
    elif data.val.partition(":")[0] == "split":
        kept, val = _hold_out(train, _share(data.val), seed)
    else:
        kept, val = train, _matched(data, train)
    for name, count, before in zip(kept.classes, kept.counts(), train.counts(), strict=True):
        if count < data.min_per_class:
            held = f" after {before - count} of {before} were held back" if before != count else ""
            raise UserError(
                f"data.train: class '{name}' has {count} training image{'s' * (count != 1)}{held}, fewer than "
                f"data.min_per_class {data.min_per_class}; add images, leave the class out with data.classes, or lower it"
            )
    if data.per_class is not None:
        kept = _first(kept, data.per_class, seed)
    return Splits(kept, val)


def _select(listing: Listing, classes: Sequence[str]) -> Listing:
    """The samples of these classes, relabelled in their order."""
    place = {name: index for index, name in enumerate(classes)}
    labels = [place.get(name) for name in listing.classes]
    items = (Item(item.key, new) for item in listing.items if (new := labels[item.label]) is not None)
    return replace(listing, classes=tuple(classes), items=tuple(items))


def _chosen(train: Listing, classes: list[str]) -> Listing:
    if not classes:
        raise UserError("data.classes is empty; name the classes to use, or leave it out")
    for index, name in enumerate(classes):
        if name in classes[:index]:
            raise UserError(f"data.classes names '{name}' twice")
        if name not in train.classes:
            raise UserError(f"data.classes: '{name}' is not in data.train{nearest(name, train.classes)}")
    return _select(train, classes)


def _matched(data: Data, train: Listing) -> Listing:
    """The validation source with train's classes, by name."""
    if data.val == data.train:
        raise UserError(
            "data.val is the same source as data.train: what was learnt by heart would be measured; "
            "write another source, or 'split:0.2' to hold images back"
        )
    val = open_source(data.val or "")
    for name in val.classes:
        if name not in train.classes and data.classes is None:
            raise UserError(
                f"data.val: class '{name}' is not in data.train{nearest(name, train.classes)}; "
                "name the classes to use in data.classes to leave the others out"
            )
    val = _select(val, train.classes)
    for name, count in zip(val.classes, val.counts(), strict=True):
        if not count:
            raise UserError(
                f"data.val: class '{name}' has no validation image, but data.train has it; "
                "add images, or name the classes to use in data.classes"
            )
    both = _places(train) & _places(val)
    if both:
        raise UserError(
            f"data.val: {len(both)} of its {len(val.items)} samples are also in data.train, {min(both)} for one; "
            "what is measured must not be learnt"
        )
    return val


def _places(listing: Listing) -> set[str]:
    root = os.path.realpath(listing.root)
    return {os.path.normpath(f"{root}/{item.key}") for item in listing.items}


def _share(text: str) -> float:
    try:
        share = float(text.partition(":")[2])
    except ValueError:
        share = 0.0
    if not 0 < share < 1:
        raise UserError(f"data.val is '{text}': write the share to hold back, between 0 and 1, such as 'split:0.2'")
    return share


def _drawn(listing: Listing, seed: int) -> list[list[Item]]:
    """The samples of each class in an order drawn from (seed, key) alone, so that another file moves no other."""

    def draw(item: Item) -> bytes:
        return hashlib.sha256(f"{seed}:{item.key}".encode("utf-8", "surrogateescape")).digest()

    classes: list[list[Item]] = [[] for _ in listing.classes]
    for item in listing.items:
        classes[item.label].append(item)
    return [sorted(items, key=draw) for items in classes]


def _without(listing: Listing, keys: set[str]) -> Listing:
    return replace(listing, items=tuple(item for item in listing.items if item.key not in keys))


def _hold_out(listing: Listing, share: float, seed: int) -> tuple[Listing, Listing]:
    """A stratified hold-out: the same share of each class, at least one sample a class on each side."""
    held: set[str] = set()
    for name, items in zip(listing.classes, _drawn(listing, seed), strict=True):
        if len(items) < 2:
            raise UserError(f"data.val: class '{name}' has {len(items)} image, too few to hold one back; add images")
        count = min(max(1, round(share * len(items))), len(items) - 1)
        held.update(item.key for item in items[:count])
    kept = {item.key for item in listing.items} - held
    return _without(listing, held), _without(listing, kept)


def _first(listing: Listing, count: int, seed: int) -> Listing:
    """At most `count` samples a class; a larger count adds samples and drops none."""
    return _without(listing, {item.key for items in _drawn(listing, seed) for item in items[count:]})
