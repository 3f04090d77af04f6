"""What a device has: tf32, fused optimizers, and the order of images in memory."""

from __future__ import annotations

from typing import Literal

import torch
from torch import nn

from trainer.config import UserError

Asked = bool | Literal["auto"]
_CONVOLUTIONS = (nn.Conv2d, nn.ConvTranspose2d)
_TF32 = (8, 0)  # Ampere


def set_tf32(asked: Asked, device: torch.device) -> bool:
    """Whether products of 32-bit numbers are rounded to tf32 from here on. Raises UserError where the device has none."""
    has = device.type == "cuda" and torch.cuda.get_device_capability(device) >= _TF32
    if asked is True and not has:
        what = "a CPU has none" if device.type != "cuda" else f"{torch.cuda.get_device_name(device)} has none"
        raise UserError(f"train.tf32 needs a GPU of compute capability 8.0 or later, and {what}; leave it out")
    chosen = has if asked == "auto" else asked
    if device.type == "cuda":  # torch's own default is true for convolutions and false for matrices
        torch.backends.cuda.matmul.allow_tf32 = torch.backends.cudnn.allow_tf32 = chosen
    return chosen


def channels_last(network: nn.Module, asked: Asked, device: torch.device) -> bool:
    """Lay the weights of convolutions out with the channels last, which images follow; whether it was done.

    Layers of other dimensions stay as they are. Raises UserError where it is asked for and there is no 2-d convolution.
    """
    found = [m for m in network.modules() if isinstance(m, _CONVOLUTIONS) and "weight" in m._parameters]
    if asked is True and not found:
        raise UserError("train.channels_last is about 2-d convolutions, and the network has none; leave it out")
    if not (asked is True or (asked == "auto" and device.type == "cuda" and any(_overlaps(m) for m in found))):
        return False
    for module in found:
        weight = module.weight.data
        _, inner, height, width = weight.shape
        if inner > 1:
            # written out, since one pixel lies the same either way: its gradients come with these strides, and DDP compares
            strides = (height * width * inner, 1, width * inner, inner)
            module.weight.data = torch.empty_strided(weight.shape, strides, dtype=weight.dtype, device=weight.device).copy_(
                weight
            )
    return True


def _overlaps(layer: nn.Module) -> bool:
    """Whether its windows do: those that cut an image into patches, and single pixels, gain nothing."""
    assert isinstance(layer, _CONVOLUTIONS)
    return any(size > stride for size, stride in zip(layer.kernel_size, layer.stride, strict=True))
