"""Weights that stay near those that came."""

from __future__ import annotations

import torch

from trainer.config import UserError
from trainer.config.losses.l2_sp import Config
from trainer.losses.base import Ground, Loss, Seen


def build(config: Config, ground: Ground, key: str) -> Loss:
    """The loss over what learns. Raises UserError where nothing that came with values does."""
    if not ground.held and config.alpha:
        raise UserError(f"{key}: nothing that came with the weights learns, so that nothing could leave its start; leave it out")
    return L2SP(config, ground)


class L2SP(Loss):
    """alpha / 2 ||w - w0||² over what is pretrained and beta / 2 ||w||² over what is new (Li, Grandvalet and Davoine 2018,
    equation 3), the same for every sample.
    """

    def __init__(self, config: Config, ground: Ground) -> None:
        super().__init__()
        self._alpha, self._beta = config.alpha, config.beta
        # in lists: they are the network's, which is saved elsewhere
        self._held, self._new = list(ground.held), list(ground.new)

    def forward(self, seen: Seen) -> torch.Tensor:
        """[n]."""
        device = seen.logits.device
        far = _squares([now - start for now, start in self._held if now.requires_grad], device)
        new = _squares([now for now in self._new if now.requires_grad], device)
        return (0.5 * (self._alpha * far + self._beta * new)).expand(len(seen.logits))


def _squares(tensors: list[torch.Tensor], device: torch.device) -> torch.Tensor:
    if not tensors:
        return torch.zeros((), device=device)
    return torch.stack([tensor.float().square().sum() for tensor in tensors]).sum()
