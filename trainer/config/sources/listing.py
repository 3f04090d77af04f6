"""Lists of samples: read from a source, cut to classes, split and counted; pure functions of the source and the seed."""

from __future__ import annotations

import hashlib
import importlib
import os
import pkgutil
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from trainer.config.errors import UserError, nearest
from trainer.config.folds import folded, fraction, groups_of, held_groups
from trainer.config.run import Data

_HELPERS = ("listing",)  # modules here that are no scheme


@dataclass(frozen=True, slots=True)
class Item:
    """One sample: its path below the listing's root (or its place in a file there) and its class.

    `weight` is how often it is wanted, relative to others, and `group` what must not be torn apart by a split; both are columns
    that the source was asked for.
    """

    key: str
    label: int
    weight: float = 1.0
    group: str = ""


@dataclass(frozen=True)
class Listing:
    """The samples of a source, in an order that is the source's alone, and the names of their classes.

    `root` is the folder that the keys are relative to; for `digits` it is the data file and a key is a row of it. `stored` are
    the files below the root that hold the samples, where these are not files of their own, and `how` is what their reader
    needs to know besides the keys.
    """

    scheme: str
    root: Path
    classes: tuple[str, ...]
    items: tuple[Item, ...]
    stored: tuple[str, ...] = ()
    how: Mapping[str, Any] = field(default_factory=dict, compare=False, repr=False)

    def files(self) -> list[Path]:
        """The files that hold the samples, each once."""
        if self.stored:
            return [self.root / name for name in self.stored]
        return [self.root] if self.scheme == "digits" else [self.root / item.key for item in self.items]

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
        for name in self.stored:
            put(name, _size(self.root / name))
        for item in self.items:
            put(item.key, item.label)
            if item.weight != 1.0:
                put(item.weight)
            if self.scheme != "digits" and not self.stored:
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
    schemes = [m.name for m in pkgutil.iter_modules(here.__path__) if m.name not in _HELPERS]
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
    seed = seed if data.split_seed is None else data.split_seed
    train = open_source(data.train)
    if data.classes is not None:
        train = _chosen(train, data.classes)
    if len(train.classes) < 2:
        raise UserError(f"data.train: only one class, '{train.classes[0]}'; a classifier needs two or more")
    if data.val is None:
        kept, val = train, None
    elif data.val.partition(":")[0] == "split":
        kept, val = _hold_out(train, _share(data.val), seed)
    elif data.val.partition(":")[0] == "fold":
        kept, val = _parted(
            train,
            folded(train.items, _drawn(train, seed), data.val),
            "has no image in this part; write fewer parts, or add images",
        )
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
        kept = _first(kept, [data.per_class] * len(kept.classes), seed)
    elif data.fraction is not None:
        kept = _first(kept, [fraction(count, data.fraction) for count in kept.counts()], seed)
    return Splits(kept, val)


def _select(listing: Listing, classes: Sequence[str]) -> Listing:
    """The samples of these classes, relabelled in their order."""
    place = {name: index for index, name in enumerate(classes)}
    labels = [place.get(name) for name in listing.classes]
    items = (replace(item, label=new) for item in listing.items if (new := labels[item.label]) is not None)
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
    if groups_of(listing.items):
        held = held_groups(listing.items, _drawn(listing, seed), share)
        return _parted(
            listing, held, "has no image held back, or none left; its groups are too few for split: write another share"
        )
    for name, items in zip(listing.classes, _drawn(listing, seed), strict=True):
        if len(items) < 2:
            raise UserError(f"data.val: class '{name}' has {len(items)} image, too few to hold one back; add images")
        count = min(max(1, round(share * len(items))), len(items) - 1)
        held.update(item.key for item in items[:count])
    kept = {item.key for item in listing.items} - held
    return _without(listing, held), _without(listing, kept)


def _parted(listing: Listing, held: set[str], wrong: str) -> tuple[Listing, Listing]:
    """(the rest, what is held back); raises UserError for a class that one of them lacks."""
    kept = {item.key for item in listing.items} - held
    rest, out = _without(listing, held), _without(listing, kept)
    for name, left, taken in zip(listing.classes, rest.counts(), out.counts(), strict=True):
        if not left or not taken:
            raise UserError(f"data.val: class '{name}' ({left + taken} images) {wrong}")
    return rest, out


def _first(listing: Listing, counts: Sequence[int], seed: int) -> Listing:
    """At most so many samples of each class; a larger count adds samples and drops none."""
    drawn = zip(_drawn(listing, seed), counts, strict=True)
    return _without(listing, {item.key for items, count in drawn for item in items[count:]})
