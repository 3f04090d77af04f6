"""Fills a network of pictures from a checkpoint by names alone."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import nn

from trainer.config import UserError
from trainer.models.base import Checkpoint, LoadReport, first_few


def fill(network: nn.Module, checkpoint: Checkpoint) -> LoadReport:
    """Copy the tensors of the same names. Raises UserError where shapes differ, or fewer than half are there."""
    own: Mapping[str, torch.Tensor] = network.state_dict()
    given = checkpoint.tensors
    wrong = [
        f"{name} {list(given[name].shape)} in the file, {list(value.shape)} in the network"
        for name, value in own.items()
        if name in given and given[name].shape != value.shape
    ]
    if wrong:
        raise UserError(f"{checkpoint.source}: a checkpoint of another shape: {first_few(wrong, 3)}")
    matched = [name for name in own if name in given]
    fresh = [name for name in own if name not in given]
    if 2 * len(matched) < len(own) or not matched:
        raise UserError(
            f"{checkpoint.source}: {len(matched)} of the network's {len(own)} tensors are in it, so it is the checkpoint of "
            f"another network; the network has {first_few(fresh, 3)}"
        )
    with torch.no_grad():
        for name in matched:
            own[name].copy_(given[name])
    return LoadReport(checkpoint.source, matched=matched, fresh=fresh, left_over=[name for name in given if name not in own])
