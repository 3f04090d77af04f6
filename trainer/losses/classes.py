"""What a classifier's logits cost: one value a sample, for a class or for shares of classes."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Literal

import torch
from torch.nn import functional

from trainer.config import UserError, nearest

Kind = Literal["cross_entropy", "mse", "focal", "bce"]


class ClassLoss:
    """A loss over the classes, with smoothed labels and weighted classes.

    cross_entropy; focal (Lin et al. 2017, equation 4, over all classes of the softmax); bce: one class against the rest, the mean
    over the classes (Wightman, Touvron and Jegou 2021, section 4.1); mse against the one-hot class. Smoothing gives every class
    `smoothing / classes` of the label (Szegedy et al. 2016, section 7).
    """

    def __init__(self, kind: Kind, smoothing: float, gamma: float, weights: torch.Tensor | None) -> None:
        self._kind, self._smoothing, self._gamma = kind, smoothing, gamma
        self._weights = weights

    def __call__(self, logits: torch.Tensor, labels: torch.Tensor, shares: torch.Tensor | None = None) -> torch.Tensor:
        """[n] from logits [n, classes] and labels [n]; or from `shares` [n, classes] of images that were mixed."""
        logits = logits.float()
        if self._weights is not None:
            self._weights = self._weights.to(logits.device)
        if shares is None and self._kind == "cross_entropy":  # torch's own: quicker, and what the field compares with
            losses = functional.cross_entropy(logits, labels, reduction="none", label_smoothing=self._smoothing)
            return losses if self._weights is None else losses * self._weights[labels]
        size = logits.shape[1]
        given = functional.one_hot(labels, size).float() if shares is None else shares
        smooth = given * (1 - self._smoothing) + self._smoothing / size
        weight = None if self._weights is None else given @ self._weights
        if self._kind == "cross_entropy":
            # of mixed images each class brings its own loss, with its own weight
            nll = -logits.log_softmax(dim=1)
            own = (1 - self._smoothing) * nll + self._smoothing * nll.mean(dim=1, keepdim=True)
            return (own * (given if self._weights is None else given * self._weights)).sum(dim=1)
        if self._kind == "focal":
            logs = logits.log_softmax(dim=1)
            losses = -(smooth * (1 - logs.exp()) ** self._gamma * logs).sum(dim=1)
        elif self._kind == "bce":
            losses = functional.binary_cross_entropy_with_logits(logits, smooth, reduction="none").mean(dim=1)
        else:
            losses = (logits - smooth).square().mean(dim=1)
        return losses if weight is None else losses * weight


def class_weights(
    chosen: str | Mapping[str, float], classes: Sequence[str], counts: Sequence[int], beta: float
) -> torch.Tensor | None:  # fmt: skip
    """The weight of each class [classes], their mean over the training samples 1, so that the learning rate keeps its meaning.

    balanced: each class weighs the same in sum; effective: by the effective number of its samples (Cui et al. 2019, equation 3);
    a mapping gives weights by name as they are, and 1 to classes it does not name. None without weights. Raises UserError.
    """
    if chosen == "none":
        return None
    if not isinstance(chosen, str):
        for name in chosen:
            if name not in classes:
                raise UserError(f"task.class_weights: the task has no class '{name}'{nearest(name, classes)}")
        return torch.tensor([float(chosen.get(name, 1.0)) for name in classes])
    sizes = torch.tensor([max(1, count) for count in counts], dtype=torch.float64)
    weights = 1 / sizes if chosen == "balanced" else (1 - beta) / (1 - beta**sizes)
    mean = (weights * torch.tensor(counts, dtype=torch.float64)).sum() / max(1, sum(counts))
    return (weights / mean).float()
