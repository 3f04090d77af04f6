"""Distillation of a teacher's answers."""

from __future__ import annotations

import torch
from torch.nn import functional

from trainer.config.losses.logits import Config
from trainer.losses.base import Ground, Loss, Seen
from trainer.spec import Output


def build(config: Config, ground: Ground, key: str) -> Loss:
    """The loss towards `ground.references["teacher"]`."""
    return Logits(config, ground.outputs)


class Logits(Loss):
    """Of classes: T² KL(teacher at temperature T || network at T) (Hinton, Vinyals and Dean 2015, section 2), or, when `hard`,
    the cross-entropy with the teacher's class (Touvron et al. 2021, section 3).

    Of labels that go with each other, the same for each label's yes and no, their mean; of measured values the squared distance.
    Several heads are added up.
    """

    def __init__(self, config: Config, outputs: tuple[Output, ...]) -> None:
        super().__init__()
        self._temperature, self._hard, self._outputs = config.temperature, config.hard, outputs

    def forward(self, seen: Seen) -> torch.Tensor:
        """[n]."""
        parts = torch.zeros(len(seen.logits), device=seen.logits.device)
        begin = 0
        for output in self._outputs:
            end = begin + len(output.labels)
            parts = parts + self._one(output, seen.logits[:, begin:end].float(), seen.answers["teacher"][:, begin:end].float())
            begin = end
        return parts

    def _one(self, output: Output, own: torch.Tensor, given: torch.Tensor) -> torch.Tensor:
        t = self._temperature
        if output.kind == "values":
            return (own - given).square().mean(dim=1)
        if output.kind == "labels":
            if self._hard:
                return functional.binary_cross_entropy_with_logits(own, (given > 0).float(), reduction="none").mean(dim=1)
            wanted = torch.sigmoid(given / t)
            cross = functional.binary_cross_entropy_with_logits(own / t, wanted, reduction="none")
            itself = functional.binary_cross_entropy_with_logits(given / t, wanted, reduction="none")
            return t * t * (cross - itself).mean(dim=1)
        if self._hard:
            return functional.cross_entropy(own, given.argmax(dim=1), reduction="none")
        logs = (given / t).log_softmax(dim=1)
        return t * t * functional.kl_div((own / t).log_softmax(dim=1), logs, reduction="none", log_target=True).sum(dim=1)
