"""Labels that go with each other: for each of them, whether an image has it."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch

from trainer.config.targets import Facts
from trainer.config.tasks.multilabel import Config
from trainer.losses.labels import LabelLoss, pos_weights
from trainer.spec import Output
from trainer.tasks.answers import Answers
from trainer.tasks.base import Batch, Evaluation
from trainer.tasks.ranking import average_precision
from trainer.tasks.supervised import Supervised, SupervisedMeasure, with_auxiliary

_ABSENT, _PRESENT, _UNKNOWN = 1, 2, 3  # a row that no rank has filled holds 0


def build(config: Config, facts: Facts) -> MultiLabel:
    """The task for the labels of the training data."""
    return MultiLabel(config, facts)


class MultiLabel(Supervised):
    """A yes or no to each label, by any of the losses of `trainer.losses.labels`."""

    def __init__(self, config: Config, facts: Facts) -> None:
        (known,) = config.learnt(facts)
        self.labels, self.threshold = known.target.labels, config.threshold
        self._config = config
        gammas = (config.gamma, config.gamma) if config.loss == "focal" else (config.gamma_present, config.gamma_absent)
        weights = pos_weights(config.pos_weight, self.labels, known.counts, known.known)
        self.criterion = LabelLoss(config.loss, config.label_smoothing, gammas, config.clip, weights)

    @property
    def outputs(self) -> tuple[Output, ...]:
        """One head with a logit a label."""
        return (Output("", self.labels, "labels"),)

    def losses(self, output: object, batch: Batch) -> dict[str, torch.Tensor]:
        """One loss."""
        truth = batch.values
        assert truth is not None
        return {"task": with_auxiliary(output, self._config.aux_weight, lambda logits: self.criterion(logits, truth))}

    def measure(self, samples: int, device: torch.device) -> LabelMeasure:
        """Rows on the device until the evaluation ends."""
        return LabelMeasure(self, samples, device)

    def predictions(self, logits: torch.Tensor, top: int) -> list[dict[str, Any]]:
        """{labels: those that are at the threshold or above, probabilities: {label: …}} of each image."""
        del top
        return [
            {
                "labels": [name for name, p in zip(self.labels, row, strict=True) if p >= self.threshold],
                "probabilities": dict(zip(self.labels, row, strict=True)),
            }
            for row in logits.double().sigmoid().tolist()
        ]


class LabelMeasure(SupervisedMeasure):
    """What was said of each sample and what is known of it; the average precision needs all of it at once."""

    def __init__(self, task: MultiLabel, samples: int, device: torch.device) -> None:
        super().__init__(task)
        self._criterion, self._labels, self._threshold = task.criterion, task.labels, task.threshold
        self._loss = torch.zeros(2, dtype=torch.float64, device=device)  # sum, and samples of which something is known
        # One row a sample; each rank fills its own, the rest stay 0.
        self._logits = torch.zeros(samples, len(task.labels), device=device)
        self._truth = torch.zeros(samples, len(task.labels), dtype=torch.uint8, device=device)

    def add(self, logits: torch.Tensor, batch: Batch) -> None:
        """Add a batch that has these logits."""
        truth = batch.values
        assert truth is not None
        known = ~truth.isnan()
        said = known.any(dim=1)
        losses = self._criterion(logits, truth).double()
        self._loss += torch.stack([(losses * said).sum(), said.sum().double()])
        rows = batch.indices.to(logits.device)
        self._logits[rows] = logits
        code = torch.where(truth > 0, _PRESENT, _ABSENT)
        self._truth[rows] = torch.where(known, code, _UNKNOWN).to(torch.uint8)

    def tensors(self) -> Sequence[torch.Tensor]:
        """What is to be summed over the ranks, in place."""
        return self._loss, self._logits, self._truth

    def result(self) -> Evaluation:
        """Figures over what is known: mean average precision over the labels that some image has; F1 over labels (macro) and over
        all answers (micro); `accuracy`, the share of right answers; `exact`, of images with nothing wrong. Per label precision,
        recall, F1, average precision.
        """
        seen = (self._truth != 0).any(dim=1).cpu()
        rows = seen.nonzero().squeeze(1)
        truth, p = self._truth.cpu()[rows], self._logits.cpu()[rows].double().sigmoid()
        known, present = truth != _UNKNOWN, truth == _PRESENT
        said = (p >= self._threshold) & known
        hits, found, support = ((part & known).sum(dim=0).double() for part in (said & present, said, present))
        precision, recall = _share(hits, found), _share(hits, support)
        f1 = _share(2 * hits, found + support)
        ranked = average_precision(self._logits.cpu()[rows], present, known)
        asked, there = known.any(dim=0), support > 0
        right = (said == present) | ~known
        whole = right.all(dim=1)[known.any(dim=1)]
        total, count = self._loss.tolist()
        metrics = {
            "loss": total / max(1, count),
            "map": _mean(ranked[there]),
            "f1": _mean(f1[asked]),
            "micro_f1": float(_share(2 * hits.sum(), (found + support).sum())),
            "accuracy": _mean(right[known].double()),
            "exact": _mean(whole.double()),
        }
        per_label = [
            {
                "name": name, "precision": float(precision[i]), "recall": float(recall[i]), "f1": float(f1[i]),
                "ap": float(ranked[i]) if there[i] else None, "support": int(support[i]), "known": int(known[:, i].sum()),
            }
            for i, name in enumerate(self._labels)
        ]  # fmt: skip

        def answer(place: int) -> dict[str, Any]:
            return {
                "truth": present[place].nonzero().squeeze(1).tolist(),
                "unknown": (~known[place]).nonzero().squeeze(1).tolist(),
                "predicted": (p[place] >= self._threshold).nonzero().squeeze(1).tolist(),
                "probabilities": p[place].tolist(),
            }

        details = {
            "kind": "multilabel", "samples": len(rows), "labels": list(self._labels), "threshold": self._threshold,
            "right": int(whole.sum()), "per_label": per_label, "answers": Answers(rows.tolist(), answer),
        }  # fmt: skip
        return Evaluation(metrics, details)


def _share(part: torch.Tensor, whole: torch.Tensor) -> torch.Tensor:
    """0 where there is nothing to share."""
    return torch.where(whole > 0, part / whole.clamp(min=1), 0.0)


def _mean(values: torch.Tensor) -> float:
    """NaN of nothing."""
    return float(values.mean()) if len(values) else float("nan")
