"""The training and validation samples of a run: matched, held back, cut down, and checked."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Sequence
from dataclasses import dataclass, replace

from trainer.config.errors import UserError, nearest
from trainer.config.folds import folded, fraction, groups_of, held_groups
from trainer.config.run import Data
from trainer.config.sources.listing import Item, Listing, flattened, read_source, relabelled
from trainer.config.sources.matching import fitted, open_source
from trainer.config.targets import Facts, LooksAt, columns

_FINEST = 1e-5  # of a value's mean: then 32-bit numbers tell its deviation apart to 0.6%


@dataclass(frozen=True)
class Splits:
    """The training and validation samples with the same targets in the same order."""

    train: Listing
    val: Listing | None


def open_splits(data: Data, seed: int, *, looks_at: LooksAt = "targets") -> Splits:
    """The samples of a run, checked: raises UserError that names the class, the folder or the row.

    `looks_at`: what the task looks at, see `read_source`; `data.classes` chooses by it in any case. Captions are the classes of
    what comes back, those of the validation samples after those of the training samples, and the samples are split as if they
    had none.
    """
    if looks_at == "captions":
        return _captioned(data, seed)
    flat = looks_at == "nothing"
    seed = seed if data.split_seed is None else data.split_seed
    train = open_source(data.train, looks_at=looks_at if data.classes is None else "targets")
    if data.classes is not None:
        train = _chosen(train, data.classes)
        train = flattened(train) if flat else train
    for target in train.targets:
        if target.kind == "class" and len(target.labels) < 2 and not flat:
            of = f" of '{target.name}'" if target.name else ""
            raise UserError(f"data.train: only one class{of}, '{target.labels[0]}'; a classifier needs two or more")
    if data.val is None:
        kept, val = train, None
    elif data.val.partition(":")[0] == "split":
        kept, val = _hold_out(train, _share(data.val), seed)
    elif data.val.partition(":")[0] == "fold":
        kept, val = _parted(
            train,
            folded(stratified(train), drawn(train, seed), data.val),
            "has no image in this part; write fewer parts, or add images",
        )
    else:
        kept, val = train, _matched(data, train, flat=flat)
    if not kept.items:
        raise UserError("data.train: no image is left to learn from")
    facts = kept.facts
    _enough(data, train.facts if kept is not train else facts, facts)
    if data.per_class is not None:
        if not kept.plain:
            raise UserError(
                "data.per_class counts the images of a class, and data.train says other things too (or instead); write "
                "data.fraction: a share of the images"
            )
        kept = _first(kept, [data.per_class] * len(kept.classes), seed)
    elif data.fraction is not None:
        kept = _first(kept, [fraction(len(items), data.fraction) for items in drawn(kept, seed)], seed)
    _spread(kept.facts)
    return Splits(kept, val)


def _captioned(data: Data, seed: int) -> Splits:
    """The samples of a run with a text each."""
    if data.classes is not None:
        raise UserError("data.classes chooses among classes, and the task looks at texts; leave it out")
    sources = [data.train, *([data.val] if data.val and data.val.partition(":")[0] not in ("split", "fold") else [])]
    said: dict[tuple[str, str], str] = {}
    for source in sources:
        listing = read_source(source, looks_at="captions")
        said |= {(str(listing.root), item.key): listing.classes[item.label] for item in listing.items}
    plain = open_splits(data, seed, looks_at="nothing")
    places: dict[str, int] = {}
    found = []
    for part in (plain.train, plain.val):
        lost = next((item.key for item in part.items if (str(part.root), item.key) not in said), None) if part else None
        if part is not None and lost is not None:
            raise UserError(f"{part.root}: {lost} has no caption")
        texts = [said[str(part.root), item.key] for item in part.items] if part is not None else []
        for text in texts:
            places.setdefault(text, len(places))
        found.append(texts)
    classes = tuple(places)

    def told(part: Listing, texts: list[str]) -> Listing:
        items = tuple(replace(item, label=places[text]) for item, text in zip(part.items, texts, strict=True))
        return replace(part, classes=classes, items=items, targets=())

    return Splits(told(plain.train, found[0]), None if plain.val is None else told(plain.val, found[1]))


def _chosen(train: Listing, names: list[str]) -> Listing:
    """The samples of these classes; or, of a source with labels alone, all samples with these labels alone."""
    if not names:
        raise UserError("data.classes is empty; name the classes to use, or leave it out")
    target = train.targets[0]
    if len(train.targets) > 1 or target.kind == "values":
        what = f"several things ({', '.join(t.name for t in train.targets)})" if len(train.targets) > 1 else "numbers"
        raise UserError(f"data.classes chooses among classes or labels, and data.train says {what} of an image; leave it out")
    for index, name in enumerate(names):
        if name in names[:index]:
            raise UserError(f"data.classes names '{name}' twice")
        if name not in target.labels:
            raise UserError(f"data.classes: '{name}' is not in data.train{nearest(name, target.labels)}")
    return _of(train, names)


def _of(listing: Listing, names: list[str]) -> Listing:
    if listing.plain:
        return relabelled(listing, names)
    target = replace(listing.targets[0], labels=tuple(names))
    return fitted(listing, [target], "data", "not in data.classes", choose=True)


def _matched(data: Data, train: Listing, *, flat: bool) -> Listing:
    """The validation source with train's targets, by name."""
    if data.val == data.train:
        raise UserError(
            "data.val is the same source as data.train: what was learnt by heart would be measured; "
            "write another source, or 'split:0.2' to hold images back"
        )
    hint = "; name the classes to use in data.classes to leave the others out"
    given = open_source(data.val or "", looks_at="nothing" if flat and data.classes is None else "targets")
    if flat and data.classes is not None:
        given = flattened(_of(given, data.classes))
    val = fitted(
        given, train.targets, "data.val", "not in data.train", hint if len(train.targets) == 1 else "",
        choose=data.classes is not None,
    )  # fmt: skip
    for known in val.facts.targets:
        target = known.target
        of = f" of '{target.name}'" if target.name else ""
        if target.kind == "class":
            for name, count in zip(target.labels, known.counts, strict=True):
                if not count:
                    raise UserError(
                        f"data.val: class '{name}'{of} has no validation image, but data.train has it; "
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


def _enough(data: Data, all_of_it: Facts, kept: Facts) -> None:
    """Raises UserError for a class or label with too few training images."""
    for before, after in zip(all_of_it.targets, kept.targets, strict=True):
        target = after.target
        word, of = "label" if target.kind == "labels" else "class", f" of '{target.name}'" if target.name else ""
        for name, count, whole in zip(target.labels if after.counts else (), after.counts, before.counts, strict=True):
            if count < data.min_per_class:
                held = f" after {whole - count} of {whole} were held back" if whole != count else ""
                raise UserError(
                    f"data.train: {word} '{name}'{of} has {count} training image{'s' * (count != 1)}{held}, fewer than "
                    f"data.min_per_class {data.min_per_class}; add images, leave the {word} out with data.classes, or lower it"
                )


def _spread(facts: Facts) -> None:
    """Raises UserError for a value that tells no image from another."""
    for target in facts.targets:
        if target.target.kind != "values":
            continue
        for name, count, mean, std in zip(target.target.labels, target.known, target.mean, target.std, strict=True):
            if std == 0:
                said = f"is {mean:g} in all {count} training images that have it" if count else "is known of no training image"
                raise UserError(f"data.train: the value '{name}' {said}; leave it out, since there is nothing to learn")
            if std < _FINEST * abs(mean):
                raise UserError(
                    f"data.train: the value '{name}' varies by {std:g} around {mean:g}, which 32-bit numbers hardly tell apart; "
                    f"subtract {mean:.6g} from it in the source"
                )


def _share(text: str) -> float:
    try:
        share = float(text.partition(":")[2])
    except ValueError:
        share = 0.0
    if not 0 < share < 1:
        raise UserError(f"data.val is '{text}': write the share to hold back, between 0 and 1, such as 'split:0.2'")
    return share


def stratified(listing: Listing) -> list[Item]:
    """The samples, each with the stratum that a split spreads evenly as its label.

    Strata are the classes, and one more for samples without one; of a source with labels and no class the rarest label that a
    sample has; of numbers alone there is one.
    """
    labelled = next((t for t in listing.targets if t.kind == "labels"), None)
    if listing.classes or labelled is None:
        return [item if item.label >= 0 else replace(item, label=len(listing.classes)) for item in listing.items]
    place = columns(listing.targets)[listing.targets.index(labelled)]
    counts = [sum(item.values[column] == 1 for item in listing.items) for column in place]
    order = sorted(range(len(place)), key=lambda index: counts[index])
    return [
        replace(item, label=next((i for i in order if item.values[place.start + i] == 1), len(place))) for item in listing.items
    ]


def drawn(listing: Listing, seed: int) -> list[list[Item]]:
    """The samples of each stratum in an order drawn from (seed, key) alone, so that another file moves no other."""

    def draw(item: Item) -> bytes:
        return hashlib.sha256(f"{seed}:{item.key}".encode("utf-8", "surrogateescape")).digest()

    items = stratified(listing)
    strata: list[list[Item]] = [[] for _ in range(max([len(listing.classes) - 1, *(item.label for item in items)]) + 1)]
    for item in items:
        strata[item.label].append(item)
    return [sorted(found, key=draw) for found in strata]


def _without(listing: Listing, keys: set[str]) -> Listing:
    return replace(listing, items=tuple(item for item in listing.items if item.key not in keys))


def _hold_out(listing: Listing, share: float, seed: int) -> tuple[Listing, Listing]:
    """A stratified hold-out: the same share of each class, at least one sample a class on each side."""
    held: set[str] = set()
    if groups_of(listing.items):
        held = held_groups(stratified(listing), drawn(listing, seed), share)
        return _parted(
            listing, held, "has no image held back, or none left; its groups are too few for split: write another share"
        )
    for number, items in enumerate(drawn(listing, seed)):
        if number < len(listing.classes) and len(items) < 2:
            name = listing.classes[number]
            raise UserError(f"data.val: class '{name}' has {len(items)} image, too few to hold one back; add images")
        count = min(max(1, round(share * len(items))), len(items) - 1)
        held.update(item.key for item in items[: max(0, count)])
    return _parted(listing, held, "has no image held back; add images")


def _parted(listing: Listing, held: set[str], wrong: str) -> tuple[Listing, Listing]:
    """(the rest, what is held back); raises UserError for a class that one of them lacks, or when nothing is held back."""
    kept = {item.key for item in listing.items} - held
    rest, out = _without(listing, held), _without(listing, kept)
    if not rest.items or not out.items:
        raise UserError(f"data.val: of {len(listing.items)} images {len(out.items)} are held back; add images")
    for name, left, taken in zip(listing.classes, rest.counts(), out.counts(), strict=True):
        if not left or not taken:
            raise UserError(f"data.val: class '{name}' ({left + taken} images) {wrong}")
    return rest, out


def _first(listing: Listing, counts: Sequence[int], seed: int) -> Listing:
    """At most so many samples of each stratum; a larger count adds samples and drops none."""
    parts = zip(drawn(listing, seed), counts, strict=True)
    return _without(listing, {item.key for items, count in parts for item in items[count:]})
