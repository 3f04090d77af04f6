"""What happens to an image between the file and the network, in uint8 throughout (torchvision.transforms.v2).

A sample's random changes are drawn from torch's default CPU generator, which the data set seeds for each sample.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torchvision.transforms import InterpolationMode, v2

from trainer.config.buckets import Sides
from trainer.config.errors import UserError
from trainer.config.run import Data
from trainer.data.augment import Erase, blur, policy
from trainer.spec import InputSpec

Transform = Callable[[torch.Tensor], torch.Tensor]
_EXTREME = 8  # long side over short side, beyond which the ends are cut before the resize


@dataclass(frozen=True)
class Transforms:
    """`fixed` is the same at every reading and takes [..., c, h, w]; `random` takes one image. None: does nothing."""

    fixed: Transform | None
    random: Transform | None

    def __call__(self, image: torch.Tensor) -> torch.Tensor:
        """uint8 [c, h, w] to uint8 [c, image_size, image_size], or of the sides that were asked for."""
        if self.fixed is not None:
            image = self.fixed(image)
        return image if self.random is None else self.random(image)


def evaluation(data: Data, spec: InputSpec, sides: Sides | None = None) -> Transforms:
    """Resize and cut the middle, to squares or to `sides`. Raises UserError for a resized image that is smaller than the cut."""
    return Transforms(_Fixed(data, spec) if sides is None else _Cover(data, spec, sides), None)


def training(data: Data, spec: InputSpec, sides: Sides | None = None) -> Transforms:
    """The evaluation's transform, then `data.augment`; `crop: resized` takes the place of the former, `random` of its cut.

    Raises UserError for what cannot be done with the number of channels.
    """
    augment = data.augment
    steps: list[Any] = []
    fixed: Transform | None = None
    if augment.crop == "resized":
        if not 0 < augment.scale[0] <= augment.scale[1] <= 1:
            raise UserError(f"data.augment.scale is {list(augment.scale)}: write shares of the area, such as [0.08, 1.0]")
        mode = _resize_mode(data, spec)
        steps.append(v2.RandomResizedCrop(spec.image_size, augment.scale, interpolation=mode, antialias=True))
    else:
        cut = augment.crop != "random"
        fixed = _Fixed(data, spec, cut=cut) if sides is None else _Cover(data, spec, sides, cut=cut)
        if augment.crop == "random":
            steps.append(v2.RandomCrop(sides or spec.image_size))
        if augment.crop == "pad":
            steps.append(v2.RandomCrop(spec.image_size, padding=augment.padding))
    if augment.flip:
        steps.append(v2.RandomHorizontalFlip(augment.flip))
    if augment.rotate:
        steps.append(v2.RandomRotation(augment.rotate, interpolation=_turn_mode(data)))
    if augment.color:
        _needs("color", augment.color, (1, 3), spec)
        steps.append(v2.ColorJitter(augment.color, augment.color, augment.color))
    if augment.auto != "none":
        _needs("auto", augment.auto, (3,), spec)
        steps.append(policy(augment, _turn_mode(data), spec.image_size))
    if augment.grey:
        _needs("grey", augment.grey, (3,), spec)
        steps.append(v2.RandomGrayscale(augment.grey))
    if augment.blur:
        steps.append(v2.RandomApply([blur(spec.image_size)], augment.blur))
    if augment.solarize:
        _needs("solarize", augment.solarize, (1, 3), spec)
        steps.append(v2.RandomSolarize(128, augment.solarize))
    if augment.erase:
        fill = augment.erase_fill
        steps.append(v2.RandomErasing(augment.erase) if fill == "zero" else Erase(augment.erase, fill, spec))
    random: Transform | None = v2.Compose(steps) if steps else None
    return Transforms(fixed, random)


def kept(data: Data, spec: InputSpec, *, train: bool) -> Transform:
    """What is done to an image before it is kept decoded: all that is the same at every reading; and with `crop: resized`, which
    begins with chance, a resize of the short side to `data.cache.side`.
    """
    found = (training if train else evaluation)(data, spec).fixed
    return found or _Shorter(data.cache.side or spec.image_size, _resize_mode(data, spec))


def _needs(name: str, value: object, channels: tuple[int, ...], spec: InputSpec) -> None:
    if spec.in_channels not in channels:
        raise UserError(
            f"data.augment.{name} is {value!r}: it works on {' or '.join(map(str, channels))} channels, "
            f"but the network takes {spec.in_channels}; leave it out"
        )


def _resize_mode(data: Data, spec: InputSpec) -> InterpolationMode:
    modes = {
        "nearest": InterpolationMode.NEAREST_EXACT,
        "bilinear": InterpolationMode.BILINEAR,
        "bicubic": InterpolationMode.BICUBIC,
    }
    return modes[spec.interpolation if data.interpolation == "auto" else data.interpolation]


def _turn_mode(data: Data) -> InterpolationMode:
    """Rotations and shears know only nearest and bilinear."""
    return InterpolationMode.NEAREST if data.interpolation == "nearest" else InterpolationMode.BILINEAR


class _Shorter:
    """Resize so that the short side is `side`; what is smaller stays as it is."""

    def __init__(self, side: int, mode: InterpolationMode) -> None:
        self._side = side
        self._resize = v2.Resize([side], interpolation=mode, antialias=True)

    def __call__(self, image: torch.Tensor) -> torch.Tensor:
        image = _trim(image)
        return self._resize(image) if min(image.shape[-2:]) > self._side else image


class _Fixed:
    """Resize, then cut the middle: uint8 [..., h, w] to [..., image_size, image_size]; without `cut` the short side alone is
    that of data.resize_to.
    """

    def __init__(self, data: Data, spec: InputSpec, *, cut: bool = True) -> None:
        side = data.resize_to or spec.image_size
        if side < spec.image_size:
            raise UserError(
                f"data.resize_to is {side}, less than the {spec.image_size} pixels that the network takes; "
                f"write {spec.image_size} or more"
            )
        self.keep_aspect = data.resize == "crop"
        self.side = (side, side)
        self.size = (spec.image_size, spec.image_size)
        target = [side] if self.keep_aspect else [side, side]
        self.resize = v2.Resize(target, interpolation=_resize_mode(data, spec), antialias=True)
        self.centre = v2.CenterCrop(spec.image_size) if cut else None

    def __call__(self, image: torch.Tensor) -> torch.Tensor:
        if self.keep_aspect:
            image = _trim(image)
        if image.shape[-2:] != self.side:
            image = self.resize(image)
        return image if image.shape[-2:] == self.size or self.centre is None else self.centre(image)


class _Cover:
    """Resize so that the image just covers `sides`, then cut the middle: uint8 [..., h, w] to [..., *sides]; without `cut` one of
    the sides is as long as it was asked for, the other as long or longer.
    """

    def __init__(self, data: Data, spec: InputSpec, sides: Sides, *, cut: bool = True) -> None:
        self.sides, self.mode = sides, _resize_mode(data, spec)
        self.centre = v2.CenterCrop(sides) if cut else None

    def __call__(self, image: torch.Tensor) -> torch.Tensor:
        image = _trim(image)
        (height, width), (tall, broad) = image.shape[-2:], self.sides
        if tall * width > broad * height:  # wider than what is asked for
            size = [tall, max(broad, round(width * tall / height))]
        else:
            size = [max(tall, round(height * broad / width)), broad]
        if [height, width] != size:
            image = v2.functional.resize(image, size, interpolation=self.mode, antialias=True)
        return image if tuple(size) == self.sides or self.centre is None else self.centre(image)


def _trim(image: torch.Tensor) -> torch.Tensor:
    """The middle of a very long image: a line of 5000 x 1 would become 1,120,000 x 224 before its middle is cut."""
    height, width = image.shape[-2:]
    longest = _EXTREME * min(height, width)
    for dim, size in ((-2, height), (-1, width)):
        if size > longest:
            image = image.narrow(dim, (size - longest) // 2, longest)
    return image
