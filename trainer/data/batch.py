"""A micro-batch of images on its way to the network."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field, replace
from functools import lru_cache

import torch

from trainer.spec import InputSpec


@dataclass
class Batch:
    """Images [n, c, h, w] (uint8 until `to`, then normalised float32), labels [n] and indices in the listing [n], both int64.

    Where features of a frozen first part are read, they stand in place of the images, [n, …].

    `epochs` [n] int64 are the first halves of the samples' keys, whose second halves are the indices; empty for images of no
    data set.

    `bad` lists (path, reason) of files that could not be read: in training another sample took their place, in evaluation
    they are left out, so that n may even be 0. `targets` [n, classes] float32 are the shares of the classes where images were
    mixed; `labels` then are those of the first images. `values` [n, v] float32, where a source says more of an image than its
    class, are `Item.values`: NaN where something is not known. `prior`: as many samples of what a
    generator's weights knew before, one beside each.
    """

    images: torch.Tensor
    labels: torch.Tensor
    indices: torch.Tensor
    bad: list[tuple[str, str]] = field(default_factory=list)
    targets: torch.Tensor | None = None
    values: torch.Tensor | None = None
    epochs: torch.Tensor = field(default_factory=lambda: torch.zeros(0, dtype=torch.int64))
    prior: Batch | None = None

    def each(self, change: Callable[[torch.Tensor], torch.Tensor]) -> Batch:
        """A batch of other samples: every tensor, those of the prior too, changed in the same way; nothing is bad in it."""
        targets, values = (None if given is None else change(given) for given in (self.targets, self.values))
        return replace(
            self, images=change(self.images), labels=change(self.labels), indices=change(self.indices), bad=[],
            targets=targets, values=values, epochs=change(self.epochs),
            prior=None if self.prior is None else self.prior.each(change),
        )  # fmt: skip

    def pin_memory(self) -> Batch:
        """A copy in page-locked memory, from which a copy to a GPU need not be waited for."""
        targets, values = (None if given is None else given.pin_memory() for given in (self.targets, self.values))
        images, labels = self.images.pin_memory(), self.labels.pin_memory()
        prior = None if self.prior is None else self.prior.pin_memory()
        return Batch(images, labels, self.indices, self.bad, targets, values, self.epochs, prior)

    def to(self, device: torch.device, spec: InputSpec | None) -> Batch:
        """Copy to the device as uint8, a quarter of the bytes, and normalise there: (x / 255 - mean) / std.

        Without `spec` (features) nothing is normalised.
        """
        images = self.images.to(device, non_blocking=True)
        if spec is not None:
            scale, shift = _affine(spec, device)
            if device.type == "cpu" and images.dtype == torch.uint8:  # in place: half the time, and the same bits
                found = images.float()
                images = torch.addcmul(shift, found, scale, out=found)
            else:
                images = torch.addcmul(shift, images, scale)
        targets, values = (
            None if given is None else given.to(device, non_blocking=True) for given in (self.targets, self.values)
        )  # fmt: skip
        labels = self.labels.to(device, non_blocking=True)
        prior = None if self.prior is None else self.prior.to(device, spec)
        return Batch(images, labels, self.indices, self.bad, targets, values, self.epochs, prior)


@lru_cache(maxsize=16)
def _affine(spec: InputSpec, device: torch.device) -> tuple[torch.Tensor, torch.Tensor]:
    """x * scale + shift equals (x / 255 - mean) / std; each [1, c, 1, 1], worked out in double precision."""
    mean, std = (torch.tensor(values, dtype=torch.float64).view(1, -1, 1, 1) for values in (spec.mean, spec.std))
    scale, shift = 1 / (255 * std), -mean / std
    return scale.to(device, torch.float32), shift.to(device, torch.float32)
