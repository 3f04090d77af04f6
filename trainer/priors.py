"""What a generator knew before it learns: images that its untouched weights draw once, before the training, or that are given."""

from __future__ import annotations

import os
from collections.abc import Callable
from functools import partial
from pathlib import Path

from trainer.build import WEIGHTS, by_turns
from trainer.config import Run, UserError, nearest
from trainer.config.prior import Prior
from trainer.config.sources import Listing, open_source
from trainer.config.sources.listing import relabelled
from trainer.data import mix
from trainer.drawing import Drawing, Known, numbered
from trainer.models import build_model
from trainer.parts import Parts
from trainer.tasks.base import Generates, wanted


def open_prior(
    parts: Parts, folder: Path, at: Callable[[str], None], stop: Callable[[], bool], *, resumed: bool
) -> bool:  # fmt: skip
    """Have the prior's images ready, where the run has one: those that are given, or drawn below `folder`. False where a stop was
    wished before all were drawn.

    Of a run that goes on from a checkpoint (`resumed`) complete ones are taken as they are, without a look at the pretrained
    weights, which need not be there any more. Raises UserError.
    """
    run, runtime, task = parts.run, parts.runtime, parts.task
    prior: Prior | None = getattr(run.task, "prior", None)
    if prior is None or not isinstance(task, Generates):
        return True
    if prior.data is not None:
        known = given(prior, task, run)
        held_apart(known.listing, parts.splits.val)
    else:
        if parts.built.spec.in_channels not in (1, 3):
            raise UserError(
                f"task.prior: images of {parts.built.spec.in_channels} channels cannot be kept as pictures; give them as "
                "task.prior.data, or leave the prior out"
            )
        beside = {name: digest for name, digest in parts.references.items() if name in ("vae", "text")}
        drawing = Drawing(folder, run, prior, task, runtime, resumed=resumed, beside=beside)
        model = partial(build_model, run.model, run.data.normalize, wanted(task), mix(run.train.seed, WEIGHTS))
        if not (drawing.complete() and resumed) and not drawing.draw(partial(by_turns, runtime, model), at, stop):
            return False
        known = drawing.known()
    parts.prior, parts.references = known.listing, {**parts.references, "prior": known.digest}
    return True


def count(parts: Parts) -> int:
    """The images of a run's prior, before any is there; 0 without one. Raises UserError for given ones that do not fit."""
    prior: Prior | None = getattr(parts.run.task, "prior", None)
    if prior is None or prior.data is None:
        return 0 if prior is None else prior.count
    listing = _listed(prior, parts.run)
    held_apart(listing, parts.splits.val)
    return len(listing.items)


def given(prior: Prior, task: Generates, run: Run) -> Known:
    """The images of `prior.data`, of its classes where there are such, with the captions that the source says of them.

    Raises UserError.
    """
    listing = _listed(prior, run)
    digest = listing.fingerprint()
    if run.task.looks_at != "nothing":
        number = task.caption if run.task.looks_at == "captions" else task.number
        listing = numbered(listing, [number(name) for name in listing.classes], task)
    return Known(listing, digest)


def _listed(prior: Prior, run: Run) -> Listing:
    """What the source of `prior.data` has of its classes. Raises UserError."""
    assert prior.data is not None
    listing = open_source(prior.data, looks_at=run.task.looks_at)
    if prior.classes:
        if not listing.plain:
            raise UserError(f"task.prior.data: {prior.data} says more of an image than its class; write ?label=COLUMN")
        for name in prior.classes:
            if name not in listing.classes:
                raise UserError(f"task.prior.classes: '{name}' is not in {prior.data}{nearest(name, listing.classes)}")
        listing = relabelled(listing, prior.classes)
    if not listing.items:
        raise UserError(f"task.prior.data: {prior.data} has no image")
    return listing


def held_apart(prior: Listing, val: Listing | None) -> None:
    """Raises UserError where an image of the prior is also measured."""
    if val is None:
        return
    measured = {os.path.realpath(val.root / item.key) for item in val.items}
    both = [item.key for item in prior.items if os.path.realpath(prior.root / item.key) in measured]
    if both:
        raise UserError(
            f"task.prior.data: {len(both)} of its {len(prior.items)} images are also in data.val, {both[0]} for one; what is "
            "measured must not be learnt"
        )
