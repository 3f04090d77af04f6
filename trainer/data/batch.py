"""A micro-batch of images on its way to the network."""

from __future__ import annotations

from dataclasses import dataclass, field

import torch

from trainer.spec import InputSpec


@dataclass
class Batch:
    """Images [n, c, h, w] (uint8 until `to`, then normalised float32), labels [n] int64, and which samples of the listing they are.

    `bad` lists (path, reason) of files that could not be read: in training another sample took their place, in evaluation
    they are left out.
    """

    images: torch.Tensor
    labels: torch.Tensor
    indices: torch.Tensor
    bad: list[tuple[str, str]] = field(default_factory=list)

    def pin_memory(self) -> Batch:
        return Batch(self.images.pin_memory(), self.labels.pin_memory(), self.indices, self.bad)

    def to(self, device: torch.device, spec: InputSpec) -> Batch:
        """Copy to the device as uint8 and normalise there."""
        raise NotImplementedError
