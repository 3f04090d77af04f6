"""What a network takes, as a value that the rooms share without knowing each other."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import torch
from torch import nn

Interpolation = Literal["nearest", "bilinear", "bicubic"]


@dataclass(frozen=True)
class InputSpec:
    """An image as the network takes it: [in_channels, image_size, image_size], pixels in [0, 1] then (x - mean) / std.

    `interpolation`: how images were resized for its weights; the run file may say otherwise.
    """

    in_channels: int
    image_size: int
    mean: tuple[float, ...]
    std: tuple[float, ...]
    interpolation: Interpolation = "bilinear"


@dataclass(frozen=True)
class Output:
    """What a head gives for an image: one number for each of `labels` (class names, or the names of measured values).

    `name` is empty for the only head of a network. Whatever their number, a network returns one tensor [n, all labels]: the heads
    side by side in the order of the outputs, so that what a library does to the output of its head (pools it, flattens it) stays
    right; the task cuts it apart.
    """

    name: str
    labels: tuple[str, ...]
    kind: Literal["class", "labels", "values"] = "class"  # one of the labels; each of them or not; a number for each


def labels_of(outputs: tuple[Output, ...]) -> tuple[str, ...]:
    """The labels of all heads, side by side; those of several heads with the heads' names before them."""
    if len(outputs) == 1:
        return outputs[0].labels
    return tuple(f"{output.name}/{label}" for output in outputs for label in output.labels)


@dataclass(frozen=True)
class ParamGroup:
    """Parameters that learn alike, by name: `rate` is the factor on the learning rate, `start` the samples that come before;
    without `decay`, weight decay leaves them alone."""

    parameters: list[tuple[str, nn.Parameter]]
    rate: float = 1.0
    start: int = 0
    decay: bool = True


@dataclass(frozen=True)
class Piece:
    """What one rank holds of a tensor of this `shape`: `values`, one behind the other, are those from place `start` of it on."""

    values: torch.Tensor
    start: int
    shape: tuple[int, ...]
