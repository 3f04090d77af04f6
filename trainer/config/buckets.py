"""The section `data.buckets`: images keep their aspect, and a step takes images of one size."""

from __future__ import annotations

from typing import TYPE_CHECKING

from pydantic import Field

from trainer.config.base import Section
from trainer.config.errors import UserError

if TYPE_CHECKING:
    from trainer.config.run import Run

Sides = tuple[int, int]  # height and width in pixels


class Buckets(Section):
    """Buckets of aspect ratios: each image is resized to cover the nearest size of about the same area, and cut to it.

    The sizes are multiples of `step` of at most `model.adapt.image_size` squared; all images of an optimizer step have one.
    """

    step: int = Field(64, ge=1, le=4096, description="pixels that heights and widths are multiples of")
    max_ratio: float = Field(2.0, ge=1, le=8, description="most of the long side over the short one; longer images are cut")


def sizes(buckets: Buckets, side: int) -> tuple[Sides, ...]:
    """The heights and widths of at most side * side pixels: the square first, then ever longer ones, each lying and standing.

    Raises UserError where the square is none of them.
    """
    step = buckets.step
    if side % step:
        raise UserError(
            f"data.buckets.step is {step}, and model.adapt.image_size {side} is no multiple of it; write data.buckets.step: "
            f"{max(one for one in range(1, min(step, side) + 1) if side % one == 0)}, or model.adapt.image_size: "
            f"{side // step * step + step}"
        )
    found: list[Sides] = []
    for short in range(side, 0, -step):
        long = side * side // (short * step) * step
        if long > buckets.max_ratio * short:
            break
        found += [(side, side)] if short == long else [(short, long), (long, short)]
    return tuple(found)


def unsorted(run: Run) -> str | None:
    """What does not go together with `data.buckets`, and what to write instead; none where all does."""
    data, task = run.data, run.task
    if data.buckets is None:
        return None
    if task.kind != "diffusion":
        return f"data.buckets is of task diffusion, and this is {task.kind}; leave it out"
    for key, why in (("pairs", "pictures of pairs"), ("prior", "what is learnt beside the data")):
        if getattr(task, key) is not None:
            return f"data.buckets: {why} have one size; leave task.{key} or data.buckets out"
    if data.cache.kind in ("features", "decoded"):
        return f"data.buckets: data.cache: {data.cache.kind} keeps images of one size; write data.cache: none"
    if data.sampling.kind != "uniform":
        return f"data.buckets: each image comes as often as any other, and data.sampling is {data.sampling.kind}; leave it out"
    if data.resize == "squash" or data.resize_to is not None:
        key = "resize: squash" if data.resize == "squash" else f"resize_to: {data.resize_to}"
        return f"data.buckets says what images are resized to, and so does data.{key}; leave it out"
    if data.augment.crop in ("pad", "resized"):
        return f"data.buckets keeps the aspect, and augment.crop: {data.augment.crop} does not; write none, or random"
    if data.train.startswith("digits:"):
        return "data.buckets: digits all have one size; leave it out"
    if run.model.adapt.image_size is not None:
        try:
            sizes(data.buckets, run.model.adapt.image_size)
        except UserError as refused:
            return str(refused)
    return None
