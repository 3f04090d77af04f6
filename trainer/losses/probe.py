"""Which layers of two networks are compared, found by sending an empty image through both."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import nn

from trainer.losses.base import Ground, Reference
from trainer.losses.taps import Taps, maps


def last_blocks(ground: Ground, reference: Reference) -> list[tuple[str, str]]:
    """The last block of each."""
    return [(ground.blocks[-1], reference.blocks[-1])]


def widths(ground: Ground, reference: Reference) -> tuple[dict[str, int], dict[str, int]]:
    """The channels of every layer that is watched in either network."""
    own, other = _shapes(ground, reference)
    return {name: shape[1] for name, shape in own.items()}, {name: shape[1] for name, shape in other.items()}


def stages(ground: Ground, reference: Reference) -> list[tuple[str, str]]:
    """The last block of each resolution, paired from the head down; where there is one resolution (ViT), four blocks spread
    evenly over the depth."""
    for name in ground.blocks:
        ground.taps.watch(name, "losses")
    for name in reference.blocks:
        reference.taps.watch(name, "losses")
    own, other = _shapes(ground, reference)
    mine, theirs = (_last_of_each(shapes, blocks) for shapes, blocks in ((own, ground.blocks), (other, reference.blocks)))
    if len(mine) > 1 and len(theirs) > 1:
        return list(zip(mine[::-1], theirs[::-1], strict=False))[::-1]
    first, second = ([b for b in blocks if b in shapes] for shapes, blocks in ((own, ground.blocks), (other, reference.blocks)))
    count = min(4, len(first), len(second))
    spread = [[blocks[(index + 1) * len(blocks) // count - 1] for index in range(count)] for blocks in (first, second)]
    return list(dict.fromkeys(zip(*spread, strict=True)))


def _last_of_each(shapes: dict[str, torch.Size], blocks: Sequence[str]) -> list[str]:
    found: dict[int, str] = {}
    for name in blocks:
        if name in shapes and shapes[name][-1] > 1:
            found[shapes[name][-1]] = name
    return list(found.values())


def _shapes(ground: Ground, reference: Reference) -> tuple[dict[str, torch.Size], dict[str, torch.Size]]:
    device = next(reference.network.parameters()).device
    spec = ground.spec
    image = torch.zeros(1, spec.in_channels, spec.image_size, spec.image_size, device=device)
    with ground.taps.listening(), reference.taps.listening(), torch.no_grad(), torch.random.fork_rng(devices=[]):
        _still(ground.network, image)
        reference.answer(image)
        return _maps(ground.taps), _maps(reference.taps)


def _maps(taps: Taps) -> dict[str, torch.Size]:
    return {name: maps(value, name).shape for name, value in taps.seen.items() if 2 <= value.dim() <= 4}


def _still(network: nn.Module, image: torch.Tensor) -> None:
    """Call the network without changing it."""
    before = {module: module.training for module in network.modules()}
    network.eval()
    try:
        network(image)
    finally:
        for module, was in before.items():
            module.training = was
