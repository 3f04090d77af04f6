"""What logits cost that say of each label whether an image has it: one value a sample."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Literal

import torch
from torch.nn import functional

from trainer.config import UserError, nearest

Kind = Literal["bce", "focal", "asymmetric"]
_LEAST = 1e-8  # below the root of a power, where its slope would be infinite


class LabelLoss:
    """The mean over the labels of a loss for each of them, with smoothed truths and weighted presences.

    For a label with probability p that an image has (y = 1) or has not:

    bce: -y log p - (1 - y) log(1 - p); focal (Lin et al. 2017, equation 4): the same times (1 - p)^gamma and p^gamma;
    asymmetric (Ridnik et al. 2021, equations 4 to 7): a gamma each for presence and absence, and for an absent label
    p becomes max(p - clip, 0). Smoothing moves a truth by half of it towards the other one. What is not known costs 0.
    """

    def __init__(
        self, kind: Kind, smoothing: float = 0.0, gammas: tuple[float, float] = (0.0, 0.0), clip: float = 0.0,
        weights: torch.Tensor | None = None,
    ) -> None:  # fmt: skip
        """`gammas`: of labels that are there, and of those that are not; `weights` [labels] of those that are there."""
        self._kind, self._smoothing, self._clip = kind, smoothing, clip
        self._present, self._absent = gammas if kind != "bce" else (0.0, 0.0)
        self._weights = weights

    def __call__(self, logits: torch.Tensor, truth: torch.Tensor) -> torch.Tensor:
        """[n] from logits and truth [n, labels]: 1, 0, or NaN where it is not known."""
        logits = logits.float()
        known = ~truth.isnan()
        share = torch.where(known, truth, 0.0) * (1 - self._smoothing) + self._smoothing / 2
        yes, no = functional.logsigmoid(logits), functional.logsigmoid(-logits)  # log p, log(1 - p)
        present, absent = -yes, -no
        if self._present:
            present = present * (self._present * no).exp()
        if self._kind == "asymmetric" and self._clip:
            p = logits.sigmoid()
            absent = -(1 - p + self._clip).clamp(max=1).log()
            if self._absent:
                absent = absent * (p - self._clip).clamp(min=_LEAST) ** self._absent
        elif self._absent:
            absent = absent * (self._absent * yes).exp()
        if self._weights is not None:
            self._weights = self._weights.to(logits.device)
            present = present * self._weights
        return torch.where(known, share * present + (1 - share) * absent, 0.0).mean(dim=1)


def pos_weights(
    chosen: str | Mapping[str, float], labels: Sequence[str], counts: Sequence[int], known: Sequence[int]
) -> torch.Tensor | None:  # fmt: skip
    """[labels] factors on what a present label costs; none for `none`. `counts`: the images with each label, of the `known`.

    `balanced`: images without it over images with it, so that both weigh the same in sum. Raises UserError for a label that the
    task does not have.
    """
    if chosen == "none":
        return None
    if not isinstance(chosen, str):
        for name in chosen:
            if name not in labels:
                raise UserError(f"task.pos_weight: the task has no label '{name}'{nearest(name, labels)}")
        return torch.tensor([float(chosen.get(name, 1.0)) for name in labels])
    return torch.tensor(
        [(whole - count) / count if 0 < count < whole else 1.0 for count, whole in zip(counts, known, strict=True)]
    )
