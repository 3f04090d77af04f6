"""What depends on the number of classes and of channels, found by letting a library build a network for others."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import torch
from torch import nn

from trainer.models.probe import Anatomy


def compared(shaped: Callable[[int, int, int], nn.Module], anatomy: Anatomy, classes: int, size: int) -> Anatomy:
    """The anatomy with every output layer (of heads that are averaged, of distillation) and every layer that takes the image.

    `shaped(classes, size, channels)` builds the network; it is called on the meta device, for shapes alone.
    """
    with torch.device("meta"), torch.random.fork_rng(devices=[]):
        plain = _shapes(shaped(classes, size, anatomy.channels))
        wider = _shapes(shaped(classes + 1, size, anatomy.channels))
        deeper = _shapes(shaped(classes, size, anatomy.channels + 1))
    heads = _differing(plain, wider)
    inputs = [name for name in _differing(plain, deeper) if f"{name}.weight" in plain]
    head = tuple(dict.fromkeys([*(name for name in anatomy.head if name in heads or not heads), *heads]))
    return replace(anatomy, head=head, inputs=tuple(inputs) or anatomy.inputs)


def _shapes(network: nn.Module) -> dict[str, torch.Size]:
    return {name: value.shape for name, value in network.named_parameters()}


def _differing(here: dict[str, torch.Size], there: dict[str, torch.Size]) -> list[str]:
    """The modules, by dotted name, that have parameters of another shape."""
    names = [name for name, shape in here.items() if there.get(name, shape) != shape]
    return list(dict.fromkeys(name.rpartition(".")[0] for name in names))
