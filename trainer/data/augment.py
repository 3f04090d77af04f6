"""Random changes that torchvision has not, and its policies by the run file's names; uint8 [c, h, w] in and out."""

from __future__ import annotations

import math
from typing import Any

import torch
from torchvision.transforms import InterpolationMode, v2

from trainer.config.data import Augment
from trainer.spec import InputSpec


def policy(augment: Augment, mode: InterpolationMode, size: int) -> Any:
    """The transform of `augment.auto`, which is not none."""
    if augment.auto == "rand":
        rand = augment.rand
        return v2.RandAugment(rand.ops, rand.magnitude, rand.bins, interpolation=mode)
    if augment.auto == "augmix":
        own = augment.augmix
        return v2.AugMix(own.severity, own.width, own.depth, own.alpha, interpolation=mode)
    if augment.auto == "autoaugment":
        return v2.AutoAugment(v2.AutoAugmentPolicy(augment.policy), interpolation=mode)
    if augment.auto == "three":  # 3-Augment (Touvron et al. 2022, arXiv 2204.07118): one of the three
        return v2.RandomChoice([v2.Grayscale(3), v2.RandomSolarize(128, p=1.0), blur(size)])
    return v2.TrivialAugmentWide(interpolation=mode)


def blur(size: int) -> Any:
    """Gaussian, deviation 0.1 to 2 pixels; the kernel reaches four pixels, less in tiny images."""
    return v2.GaussianBlur(min(9, size - 1 + size % 2), (0.1, 2.0))


class Erase:
    """Random erasing (Zhong et al. 2020, arXiv 1708.04896): 2 to 33% of the area, aspect 0.3 to 3.3, filled with the
    normalisation's mean or with noise. Drawn from torch's default generator."""

    def __init__(self, probability: float, fill: str, spec: InputSpec) -> None:
        self._probability = probability
        self._mean = None
        if fill == "mean":
            self._mean = torch.tensor([round(min(max(m, 0.0), 1.0) * 255) for m in spec.mean], dtype=torch.uint8)[:, None, None]

    def __call__(self, image: torch.Tensor) -> torch.Tensor:
        """uint8 [c, h, w] to the same."""
        if float(torch.rand(())) >= self._probability:
            return image
        channels, height, width = image.shape
        for _ in range(10):
            area = height * width * float(torch.empty(()).uniform_(0.02, 0.33))
            aspect = math.exp(float(torch.empty(()).uniform_(math.log(0.3), math.log(3.3))))
            h, w = round((area * aspect) ** 0.5), round((area / aspect) ** 0.5)
            if 0 < h < height and 0 < w < width:
                top, left = int(torch.randint(height - h + 1, ())), int(torch.randint(width - w + 1, ()))
                fill = self._mean
                if fill is None:
                    fill = torch.randint(256, (channels, h, w), dtype=torch.uint8)
                image = image.clone()
                image[:, top : top + h, left : left + w] = fill
                break
        return image
