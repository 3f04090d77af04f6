"""Classification: a class for each image."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import nn

from trainer.config.tasks.classify import Config
from trainer.losses.classes import ClassLoss, class_weights
from trainer.spec import Output
from trainer.tasks.base import Batch, Evaluation
from trainer.tasks.calibration import brier, calibration_error, reliability


def build(config: Config, classes: Sequence[str], counts: Sequence[int]) -> Classify:
    """The task for these classes."""
    return Classify(config, classes, counts)


def _logits(output: object) -> list[torch.Tensor]:
    """The logits of a network's output: its main head first, then the auxiliary ones it has in training."""
    if isinstance(output, torch.Tensor):
        return [output]
    if isinstance(output, tuple | list):
        return [part for part in output if isinstance(part, torch.Tensor)]
    raise TypeError(f"a classifier returns logits or a tuple of logits, not {type(output).__name__}")


class Classify:
    """One class for each image, by any of the losses of `trainer.losses.classes`."""

    def __init__(self, config: Config, classes: Sequence[str], counts: Sequence[int]) -> None:
        self._config = config
        self._classes = tuple(classes)
        weights = class_weights(config.class_weights, classes, counts, config.beta)
        self._criterion = ClassLoss(config.loss, config.label_smoothing, config.gamma, weights)

    @property
    def outputs(self) -> tuple[Output, ...]:
        """One head with a logit a class."""
        return (Output("", self._classes),)

    def run(self, module: nn.Module, batch: Batch) -> object:
        """The logits, with those of auxiliary heads in training."""
        return module(batch.images)

    def logits(self, output: object) -> torch.Tensor:
        """Those of the main head, [n, classes]."""
        return _logits(output)[0]

    def losses(self, output: object, batch: Batch) -> dict[str, torch.Tensor]:
        """One loss; auxiliary heads count with `aux_weight` (Szegedy et al. 2015, section 5)."""
        main, *auxiliary = _logits(output)
        shares = getattr(batch, "targets", None)
        losses = self._criterion(main, batch.labels, shares)
        for logits in auxiliary:
            losses = losses + self._config.aux_weight * self._criterion(logits, batch.labels, shares)
        return {"task": losses}

    def measure(self, samples: int, device: torch.device) -> ClassifyMeasure:
        """Counts on the device until the evaluation ends."""
        return ClassifyMeasure(self, self._classes, samples, device)


class ClassifyMeasure:
    """The confusion matrix and what each sample was taken for."""

    def __init__(self, task: Classify, classes: Sequence[str], samples: int, device: torch.device) -> None:
        self._task = task
        self._classes = tuple(classes)
        self._confusion = torch.zeros(len(classes), len(classes), dtype=torch.int64, device=device)
        self._sums = torch.zeros(3, dtype=torch.float64, device=device)  # loss, hits among the first five, Brier score
        # One row a sample: truth + 1, prediction + 1, confidence. Each rank fills its own rows, the rest stay 0.
        self._answers = torch.zeros(samples, 3, dtype=torch.float64, device=device)

    def update(self, network: nn.Module, batch: Batch) -> None:
        """Add a batch."""
        logits = self._task.logits(self._task.run(network, batch)).float()
        labels = batch.labels
        losses = self._task._criterion(logits, labels)
        shares = logits.softmax(dim=1)
        confidence, predicted = shares.max(dim=1)
        first = logits.topk(min(5, len(self._classes)), dim=1).indices
        size = len(self._classes)
        self._confusion += torch.bincount(labels * size + predicted, minlength=size * size).view(size, size)
        right = (first == labels[:, None]).any(dim=1).double()
        self._sums += torch.stack([losses.double().sum(), right.sum(), brier(shares, labels).sum()])
        rows = batch.indices.to(labels.device)
        self._answers[rows] = torch.stack([labels.double() + 1, predicted.double() + 1, confidence.double()], dim=1)

    def tensors(self) -> Sequence[torch.Tensor]:
        """What is to be summed over the ranks, in place."""
        return self._confusion, self._sums, self._answers

    def result(self) -> Evaluation:
        """Loss, top-1 (`accuracy`), top-5, macro F1; per-class precision, recall, F1; the confusion matrix, rows the truth."""
        confusion = self._confusion.cpu().double()
        samples = int(confusion.sum())
        right = confusion.diagonal()
        support, predicted = confusion.sum(dim=1), confusion.sum(dim=0)
        precision = torch.where(predicted > 0, right / predicted.clamp(min=1), 0.0)
        recall = torch.where(support > 0, right / support.clamp(min=1), 0.0)
        f1 = torch.where(precision + recall > 0, 2 * precision * recall / (precision + recall).clamp(min=1e-12), 0.0)
        loss, five, square = (self._sums.cpu() / max(1, samples)).tolist()
        metrics = {"loss": loss, "accuracy": float(right.sum()) / max(1, samples), "f1": float(f1.mean())}
        if len(self._classes) > 5:
            metrics["top5"] = five
        answers = self._answers.cpu()
        seen = answers[answers[:, 0] > 0]
        bins = reliability(seen[:, 2], seen[:, 0] == seen[:, 1])
        metrics |= {"ece": calibration_error(bins), "brier": square}
        details = {
            "samples": samples,
            "classes": list(self._classes),
            "reliability": [{"confidence": b.confidence, "accuracy": b.accuracy, "samples": b.samples} for b in bins],
            "confusion": [[int(n) for n in row] for row in confusion.tolist()],
            "per_class": [
                {"name": n, "precision": p, "recall": r, "f1": f, "support": int(s)}
                for n, p, r, f, s in zip(
                    self._classes, precision.tolist(), recall.tolist(), f1.tolist(), support.tolist(), strict=True
                )
            ],
            "answers": [
                {"index": i, "truth": int(t) - 1, "predicted": int(p) - 1, "confidence": c}
                for i, (t, p, c) in enumerate(answers.tolist())
                if t > 0
            ],
        }
        return Evaluation(metrics, details)
