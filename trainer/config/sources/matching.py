"""A listing with the targets of another, matched by name."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import replace

from trainer.config.errors import UserError, nearest
from trainer.config.formats.query import SAID
from trainer.config.sources.listing import Item, Listing, read_source, relabelled
from trainer.config.targets import WORDS, LooksAt, Target, columns

_KEYS = {kind: key for key, kind in SAID.items()}


def open_source(source: str, targets: Sequence[Target] | None = None, *, looks_at: LooksAt = "targets") -> Listing:
    """List `scheme:rest`; with `targets` everything is matched to them by name, and other classes or labels are refused.

    Raises UserError.
    """
    listing = read_source(source, looks_at=looks_at)
    return listing if targets is None else fitted(listing, targets, source, "none of the network's")


def fitted(
    listing: Listing, targets: Sequence[Target], where: str, unknown: str, hint: str = "", *, choose: bool = False
) -> Listing:  # fmt: skip
    """The samples with these targets, classes, labels and values, in this order.

    `choose`: classes and labels that are not among them are left out, with their samples, instead of being refused. The error
    begins with `where`, says that a name is `unknown`, and ends with `hint`. Raises UserError.
    """
    wanted = tuple(targets)
    _same_targets(listing, wanted, where)
    if not choose:
        for target in wanted:
            _known(listing, target, where, unknown, hint)
    if listing.plain:
        return relabelled(listing, wanted[0].labels)
    named = {target.name: (target, place) for target, place in zip(listing.targets, columns(listing.targets), strict=True)}
    moves: list[tuple[Target, range, list[int | None]]] = []
    for target in wanted:
        own, place = named[target.name]
        if target.kind == "class":
            order = _places(own.labels, target.labels)
        else:
            order = _places(target.labels, own.labels)
            lacking = next((name for name, found in zip(target.labels, order, strict=True) if found is None), None)
            if lacking is not None and not (own.kind == "labels" and own.listed):
                what = "label" if own.kind == "labels" else "value"
                raise UserError(f"{where}: '{own.name}' has no column for the {what} '{lacking}'{nearest(lacking, own.labels)}")
        moves.append((target, place, order))
    first = next((spot for spot, target in zip(columns(wanted), wanted, strict=True) if target.kind == "class"), None)
    items = []
    for item in listing.items:
        values = tuple(value for target, place, order in moves for value in _moved(target, item.values, place, order))
        label = -1 if first is None or math.isnan(values[first.start]) else int(values[first.start])
        items.append(replace(item, label=label, values=values))
    classes = next((target.labels for target in wanted if target.kind == "class"), ())
    return replace(listing, classes=classes, items=tuple(items), targets=wanted)


def _moved(target: Target, values: tuple[float, ...], place: range, order: Sequence[int | None]) -> list[float]:
    if target.kind == "class":
        value = values[place.start]
        index = None if math.isnan(value) else order[int(value)]
        return [math.nan if index is None else float(index)]
    return [0.0 if source is None else values[place.start + source] for source in order]


def _places(names: Sequence[str], among: Sequence[str]) -> list[int | None]:
    found = {name: index for index, name in enumerate(among)}
    return [found.get(name) for name in names]


def _same_targets(listing: Listing, wanted: tuple[Target, ...], where: str) -> None:
    have, want = ({target.name: target.kind for target in targets} for targets in (listing.targets, wanted))
    for name, kind in want.items():
        if name not in have:
            asked = f"'{name}'" if name else "one class of an image, and nothing else"
            shown = ", ".join(repr(other) for other in have if other) or "one class alone"
            raise UserError(f"{where}: it must say {asked} and says {shown}; write ?{_KEYS[kind]}=COLUMN{nearest(name, have)}")
        if have[name] != kind:
            raise UserError(
                f"{where}: '{name}' is read as {WORDS[have[name]]} and must be {WORDS[kind]}; write ?{_KEYS[kind]}=COLUMN"
            )
    more = next((name for name in have if name not in want), None)
    if more is not None:
        raise UserError(f"{where}: it also says '{more}', which is not learnt; leave it out of the source")


def _known(listing: Listing, target: Target, where: str, unknown: str, hint: str) -> None:
    """Raises UserError for a class or label that the target does not have, with a sample that has it."""
    own = next(one for one in listing.targets if one.name == target.name)
    word = {"class": "class", "labels": "label", "values": "value"}[target.kind]
    of = f" of '{target.name}'" if target.name else ""
    for index, name in enumerate(own.labels):
        if name not in target.labels:
            at = _first(listing, own, index)
            seen = f" (in {at.key})" if at is not None else ""
            raise UserError(f"{where}: {word} '{name}'{of}{seen} is {unknown}{nearest(name, target.labels)}{hint}")


def _first(listing: Listing, target: Target, index: int) -> Item | None:
    """The first sample with a class or a label."""
    if listing.plain or target.kind == "values":
        return None
    place = columns(listing.targets)[listing.targets.index(target)]
    if target.kind == "class":
        return next((item for item in listing.items if item.values[place.start] == index), None)
    return next((item for item in listing.items if item.values[place.start + index] == 1), None)
