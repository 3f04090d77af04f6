"""Lists of samples: read from a source and matched to the classes, labels and values of another."""

from __future__ import annotations

import hashlib
import importlib
import pkgutil
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from pathlib import Path
from typing import Any

from trainer.config.errors import UserError, nearest
from trainer.config.formats.query import SAID
from trainer.config.targets import Facts, LooksAt, Target, columns, known

_HELPERS = ("listing", "matching", "splits")  # modules here that are no scheme
_SAY_MORE = ("csv", "hf", "webdataset")


@dataclass(frozen=True, slots=True)
class Item:
    """One sample: its path below the listing's root (or its place in a file there) and what is said of it.

    `label` is its class, the first where there are several, and -1 where none is known. `values` say everything, where a source
    says more than one class: target by target the index of the class, 0 or 1 for each label, the numbers; NaN where it is not
    known. `weight` is how often the sample is wanted, relative to others, and `group` what must not be torn apart by a split.
    """

    key: str
    label: int
    weight: float = 1.0
    group: str = ""
    values: tuple[float, ...] = ()


@dataclass(frozen=True)
class Listing:
    """The samples of a source, in an order that is the source's alone, and what is said of them.

    `classes` are the names of the classes, of the first target with classes where there are several targets; `targets` are all
    of them. `root` is the folder that the keys are relative to; for `digits` it is the data file and a key is a row of it.
    `stored` are the files below the root that hold the samples, where these are not files of their own, and `how` is what their
    reader needs to know besides the keys.
    """

    scheme: str
    root: Path
    classes: tuple[str, ...]
    items: tuple[Item, ...]
    stored: tuple[str, ...] = ()
    how: Mapping[str, Any] = field(default_factory=dict, compare=False, repr=False)
    targets: tuple[Target, ...] = ()

    def __post_init__(self) -> None:
        if not self.targets:
            object.__setattr__(self, "targets", (Target("", "class", self.classes),))

    @property
    def plain(self) -> bool:
        """Whether a class is all that is said, which the samples have no `values` for."""
        return len(self.targets) == 1 and self.targets[0].kind == "class"

    @property
    def targets_of(self) -> Mapping[str, str]:
        """The other picture of each pair, by key; none where the samples are single pictures."""
        found: Mapping[str, str] = self.how.get("targets", {})
        return found

    def files(self) -> list[Path]:
        """The files that hold the samples, each once."""
        if self.stored:
            return [self.root / name for name in self.stored]
        if self.scheme == "digits":
            return [self.root]
        others = dict.fromkeys(self.targets_of[item.key] for item in self.items if item.key in self.targets_of)
        return [self.root / item.key for item in self.items] + [self.root / key for key in others]

    def counts(self) -> list[int]:
        """Samples a class."""
        counts = [0] * len(self.classes)
        for item in self.items:
            if item.label >= 0:
                counts[item.label] += 1
        return counts

    @cached_property
    def facts(self) -> Facts:
        """What a task must know of these samples when it learns from them."""
        if self.plain:
            return Facts.plain(self.classes, self.counts())
        rows = [item.values for item in self.items]
        return Facts(tuple(known(target, place, rows) for target, place in zip(self.targets, columns(self.targets), strict=True)))

    def fingerprint(self) -> str:
        """A sha256 of what the listing says (targets, keys, labels, values and, for files, their sizes); not of the pixels.

        The root is left out, so that a data set may move. A file that is gone counts as size -1.
        """
        digest = hashlib.sha256()

        def put(*parts: object) -> None:
            for part in parts:
                data = str(part).encode("utf-8", "surrogateescape")
                digest.update(b"%d:" % len(data) + data)

        put(self.scheme, len(self.classes), *self.classes)
        if not self.plain:
            for target in self.targets:
                put(target.name, target.kind, len(target.labels), *target.labels)
        for name in self.stored:
            put(name, _size(self.root / name))
        for item in self.items:
            put(item.key, item.label, *item.values)
            if item.weight != 1.0:
                put(item.weight)
            if self.scheme != "digits" and not self.stored:
                put(_size(self.root / item.key))
            if item.key in self.targets_of:
                put(self.targets_of[item.key], _size(self.root / self.targets_of[item.key]))
        return digest.hexdigest()


def _size(path: Path) -> int:
    try:
        return path.stat().st_size
    except OSError:
        return -1


def read_source(source: str, *, looks_at: LooksAt = "targets") -> Listing:
    """List `scheme:rest`. Raises UserError.

    `looks_at`: nothing: what is said of the images is left out, and nothing need be said of them; all are of one class then.
    captions: the classes are texts of the images, of whatever kind the source has: captions in a file of its own, or names.
    """
    scheme, _, rest = source.partition(":")
    package = __package__ or ""
    here = importlib.import_module(package)
    schemes = [m.name for m in pkgutil.iter_modules(here.__path__) if m.name not in _HELPERS]
    if scheme not in schemes:
        shown = "" if source == scheme else f" in '{source}'"
        raise UserError(
            f"unknown data source '{scheme}'{shown}{nearest(scheme, schemes)}; write folder:PATH for a folder of classes"
        )
    if scheme not in _SAY_MORE:
        query = rest.partition("?")[2]
        key = next((key for key in SAID if f"&{query}".find(f"&{key}=") >= 0), None)
        if key is not None and not Path(rest).expanduser().exists():
            raise UserError(
                f"{source}: {scheme}: says one class of an image and has no '?{key}='; leave it out, or list the images in a "
                f"file for csv:FILE?image=COLUMN&{key}=COLUMN"
            )
    module = importlib.import_module(f"{package}.{scheme}")
    others = {"nothing": "flat", "captions": "captions"}
    how = others.get(looks_at, "listing")
    listing: Listing = getattr(module, how if hasattr(module, how) else "listing")(rest)
    if looks_at == "captions" and not listing.plain:
        raise UserError(
            f"{source}: a text of an image is one thing, and it says several; write ?label=COLUMN for the captions alone"
        )
    return flattened(listing) if looks_at == "nothing" else listing


def flattened(listing: Listing) -> Listing:
    """The same samples, all of one class."""
    items = tuple(replace(item, label=0, values=()) for item in listing.items)
    return replace(listing, classes=("images",), items=items, targets=())


def relabelled(listing: Listing, classes: Sequence[str]) -> Listing:
    """The samples of these classes, numbered in their order, of a listing with classes alone."""
    place = {name: index for index, name in enumerate(classes)}
    labels = [place.get(name) for name in listing.classes]
    items = (replace(item, label=new) for item in listing.items if (new := labels[item.label]) is not None)
    return replace(listing, classes=tuple(classes), items=tuple(items), targets=())
