"""Whether a network makes images of every size in `data.buckets`, and which of them each sample has."""

from __future__ import annotations

import logging

from trainer.config import Run, UserError
from trainer.config.buckets import Buckets, Sides, sizes
from trainer.config.sources import Splits
from trainer.data.buckets import Sorted, sort
from trainer.models import Built
from trainer.runtime import Runtime
from trainer.spec import Beside

log = logging.getLogger("graft")
_EIGHT = 8  # pixels that the pipelines of diffusers count in, of networks that do not learn flow


def fitting(run: Run, built: Built) -> tuple[Sides, ...]:
    """The sizes of `data.buckets`, none where there are no buckets. Raises UserError for a size that the network or its
    autoencoder does not make."""
    if run.data.buckets is None:
        return ()
    beside = built.beside
    if beside is None or beside.problem is None:
        raise UserError(
            f"data.buckets: {run.model.source} has learnt places, and makes images of one size; write a source that is a "
            "UNet2DModel, a UNet2DConditionModel or a FluxTransformer2DModel, or leave buckets out"
        )
    found = sizes(run.data.buckets, built.spec.image_size)
    if (why := _unmade(beside, run.data.buckets, found)) is not None:
        raise UserError(f"data.buckets.step is {run.data.buckets.step}: {why}; {_instead(beside, run.data.buckets)}")
    return found


def _unmade(beside: Beside, buckets: Buckets, found: tuple[Sides, ...]) -> str | None:
    """Why one of these sizes cannot be made."""
    assert beside.problem is not None
    factor = 1 if beside.vae is None else beside.vae.factor
    if beside.vae is not None and buckets.step % factor:
        return f"{beside.vae.source} takes multiples of {factor}"
    if beside.betas and buckets.step % _EIGHT:
        return f"the pipeline of this network makes images of multiples of {_EIGHT} pixels"
    for height, width in found:
        if (why := beside.problem(height // factor, width // factor)) is not None:
            return f"the network does not make images of {width} x {height} ({why})"
    return None


def _instead(beside: Beside, buckets: Buckets) -> str:
    """The smallest larger step that goes."""
    side = beside.image[1]
    for step in range(buckets.step + 1, side + 1):
        larger = buckets.model_copy(update={"step": step})
        if side % step == 0 and _unmade(beside, larger, sizes(larger, side)) is None:
            return f"write data.buckets.step: {step}"
    return "leave data.buckets out"


def bucketed(run: Run, runtime: Runtime, built: Built, splits: Splits) -> tuple[Sorted, Sorted | None] | None:
    """The buckets of the training and the validation samples; none where there are none. Rank 0 reads the headers."""
    if run.data.buckets is None:
        return None
    side = built.spec.image_size
    found: tuple[Sorted, Sorted | None] | None = None
    if runtime.main:
        train = sort(run, splits.train, side)
        found = train, None if splits.val is None else sort(run, splits.val, side)
        log.info("buckets: %s", train)
        train.warn()
    agreed: tuple[Sorted, Sorted | None] = runtime.from_main(found)
    return agreed
