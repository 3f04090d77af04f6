"""Puts saved tensors into a network."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import nn

from trainer.config import RefusedError, nearest


def fill(network: nn.Module, tensors: Mapping[str, torch.Tensor]) -> None:
    """Load tensors that must be exactly the network's own; RefusedError names the first that is not.

    The network's own state_dict is updated and loaded, since some modules (MNASNet) look for the version notes that it carries
    and a safetensors file does not.
    """
    own = network.state_dict()
    for name in [*own, *tensors]:
        if name not in tensors:
            raise RefusedError(f"the checkpoint lacks '{name}', which the network has{nearest(name, tensors)}")
        if name not in own:
            raise RefusedError(f"the checkpoint has '{name}', which the network lacks{nearest(name, own)}")
        if own[name].shape != tensors[name].shape:
            raise RefusedError(
                f"'{name}' is {list(tensors[name].shape)} in the checkpoint and {list(own[name].shape)} in the network"
            )
    own.update(tensors)
    network.load_state_dict(own)
