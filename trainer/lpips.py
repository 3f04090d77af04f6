"""LPIPS: the distance of two pictures by weighted features of a network of ImageNet (Zhang et al. 2018, equation 1)."""

from __future__ import annotations

import re
from typing import cast

import torch
from torch import nn

from trainer.config import UserError
from trainer.config.lpips import Lpips as Name
from trainer.config.model import Model
from trainer.models import needs
from trainer.models.base import Need
from trainer.models.file import read_checkpoint
from trainer.references import still

TRUNKS: dict[Name, str] = {"alex": "alexnet", "vgg": "vgg16", "squeeze": "squeezenet1_1"}


def trunk_needs(name: Name) -> list[Need]:
    """The published weights of its trunk, those of torchvision; the linear ones are part of torchmetrics."""
    return needs(Model(source=f"torchvision:{TRUNKS[name]}", weights="DEFAULT"))


class Lpips:
    """The distance as torchmetrics has it, its trunk read from torch.hub's cache: nothing is downloaded."""

    def __init__(self, name: Name, device: torch.device, *, load_weights: bool = True) -> None:
        """Without `load_weights` the trunk has the right shapes, and no values. Raises UserError for a file that is not there."""
        from torchmetrics.functional.image.lpips import _NoTrainLpips

        with torch.random.fork_rng(devices=[]):
            network = _NoTrainLpips(net=name, pnet_rand=True)
        if load_weights:
            self._fill(network.net, name)
        self.network: nn.Module = still(network, device)

    def _fill(self, trunk: nn.Module, name: Name) -> None:
        (need,) = trunk_needs(name)
        if not need.file.is_file():
            raise UserError(
                f"task.lpips: {need.what} are not here; run `graft fetch RUN` where there is a network, or put {need.url} into "
                f"{need.file.parent}; or leave task.lpips out"
            )
        tensors = read_checkpoint(need.file).tensors
        own = trunk.state_dict()
        # slice1.0.weight, slices.1.3.squeeze.weight: the trunk's own names behind the slice
        theirs = {key: "features." + re.sub(r"^slices?\.?\d+\.", "", key) for key in own}
        for key, other in theirs.items():
            if other not in tensors or tensors[other].shape != own[key].shape:
                raise UserError(f"task.lpips: {need.file} holds no {TRUNKS[name]}: '{other}' is missing or of another shape")
        trunk.load_state_dict({key: tensors[other] for key, other in theirs.items()})

    def __call__(self, made: torch.Tensor, target: torch.Tensor) -> torch.Tensor:
        """[n], with a gradient to what was made; pictures [n, 1 or 3, h, w] in [-1, 1]."""
        one, other = (picture.float().expand(-1, 3, -1, -1) for picture in (made, target))
        with torch.autocast(made.device.type, enabled=False):
            return cast(torch.Tensor, self.network(one, other)).flatten()
