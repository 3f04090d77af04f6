"""mixup and cutmix without state: whom a sample is mixed with, how, and in which shares, from (seed, epoch, sample) alone."""

from __future__ import annotations

import random
from dataclasses import dataclass

import torch

from trainer.config.data import Mix
from trainer.data.order import Key, Order, mix

_STREAM = 0x6D6978  # keeps these draws apart from those of the augmentation


@dataclass(frozen=True)
class Blend:
    """With which sample, and what is left of the first: `share` of all pixels' weight, or all but a box (cutmix)."""

    partner: Key
    share: float
    box: tuple[float, float] | None  # the middle of the other's rectangle, as shares of the height and the width


def blend(config: Mix, order: Order, seed: int, key: Key) -> Blend | None:
    """How the sample of a key is mixed; none where it stays alone.

    The partner is drawn from the sample's own epoch, so that it follows the sampling, and not from the batch, which another
    number of ranks would cut in another way. Python's generator gives the same numbers in every version.
    """
    draw = random.Random(mix(seed, _STREAM, *key))
    if draw.random() >= config.probability:
        return None
    cut = config.cutmix > 0 and (not config.mixup or draw.random() < config.switch)
    epoch = key[0] & 0xFFFFFFFF  # above are the repetitions of a weighted order
    partner = order.at(epoch * order.n + draw.randrange(order.n))
    alpha = config.cutmix if cut else config.mixup
    share = draw.betavariate(alpha, alpha)
    return Blend(partner, share, (draw.random(), draw.random()) if cut else None)


def apply(found: Blend, first: torch.Tensor, second: torch.Tensor) -> tuple[torch.Tensor, float]:
    """uint8 [c, h, w] of both to (the mixed image, the share of the first's class).

    mixup rounds to whole levels; cutmix counts the pixels that are left (Yun et al. 2019, equations 1 and 2).
    """
    if found.box is None:
        mixed = torch.lerp(second.float(), first.float(), found.share)
        return mixed.round_().to(torch.uint8), found.share
    height, width = first.shape[-2:]
    side = (1 - found.share) ** 0.5
    (top, bottom), (left, right) = (_span(middle, side, n) for middle, n in zip(found.box, (height, width), strict=True))
    mixed = first.clone()
    mixed[:, top:bottom, left:right] = second[:, top:bottom, left:right]
    return mixed, 1 - (bottom - top) * (right - left) / (height * width)


def _span(middle: float, side: float, size: int) -> tuple[int, int]:
    """From and to of a side around a middle, within the image."""
    half, centre = int(side * size) / 2, middle * size
    return max(0, round(centre - half)), min(size, round(centre + half))
