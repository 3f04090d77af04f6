"""Pictures as bytes and as numbers in [-1, 1], in one colour or three."""

from __future__ import annotations

import torch

_LUMA = (0.299, 0.587, 0.114)  # ITU-R 601, of red, green and blue


def pixels(images: torch.Tensor) -> torch.Tensor:
    """[-1, 1] to uint8, as it is written to a file; what is outside is cut."""
    found: torch.Tensor = (images.float() / 2 + 0.5).clamp(0, 1).mul(255).round().to(torch.uint8)
    return found


def coloured(images: torch.Tensor, channels: int) -> torch.Tensor:
    """uint8 [..., 1 or 3, h, w] with so many channels: grey repeated, colours as luma."""
    if images.shape[-3] == channels:
        return images
    return images.expand(*images.shape[:-3], 3, -1, -1) if channels == 3 else luma(images)


def luma(images: torch.Tensor) -> torch.Tensor:
    """uint8 [..., 1 or 3, h, w] to [..., 1, h, w]."""
    if images.shape[-3] == 1:
        return images
    weights = torch.tensor(_LUMA, device=images.device)[:, None, None]
    return (images.float() * weights).sum(dim=-3, keepdim=True).round().clamp(0, 255).to(torch.uint8)
