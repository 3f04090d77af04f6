"""Classification: a class for each image."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch

from trainer.config.targets import Facts
from trainer.config.tasks.classify import Config
from trainer.losses.classes import ClassLoss, class_weights
from trainer.spec import Output
from trainer.tasks.answers import Answers
from trainer.tasks.base import Batch, Evaluation
from trainer.tasks.calibration import brier, calibration_error, reliability
from trainer.tasks.supervised import Supervised, SupervisedMeasure, with_auxiliary


def build(config: Config, facts: Facts) -> Classify:
    """The task for the classes of the training data."""
    return Classify(config, facts)


class Classify(Supervised):
    """One class for each image, by any of the losses of `trainer.losses.classes`."""

    def __init__(self, config: Config, facts: Facts) -> None:
        (known,) = config.learnt(facts)
        self._config = config
        self._target = known.target
        weights = class_weights(config.class_weights, known.target.labels, known.counts, config.beta)
        self.criterion = ClassLoss(config.loss, config.label_smoothing, config.gamma, weights)

    @property
    def outputs(self) -> tuple[Output, ...]:
        """One head with a logit a class."""
        return (Output("", self._target.labels),)

    def losses(self, output: object, batch: Batch) -> dict[str, torch.Tensor]:
        """One loss."""
        shares = getattr(batch, "targets", None)

        def loss(logits: torch.Tensor) -> torch.Tensor:
            return self.criterion(logits, batch.labels, shares)

        return {"task": with_auxiliary(output, self._config.aux_weight, loss)}

    def measure(self, samples: int, device: torch.device) -> ClassifyMeasure:
        """Counts on the device until the evaluation ends."""
        return ClassifyMeasure(self, self._target.labels, samples, device)

    def predictions(self, logits: torch.Tensor, top: int) -> list[dict[str, Any]]:
        """{class, probability, top: [{class, probability}, …]} of each image."""
        classes = self._target.labels
        values, indices = logits.float().softmax(1).cpu().topk(min(top, len(classes)), dim=1)
        found = []
        for chances, numbers in zip(values.tolist(), indices.tolist(), strict=True):
            ranked = [{"class": classes[i], "probability": p} for i, p in zip(numbers, chances, strict=True)]
            found.append({**ranked[0], "top": ranked})
        return found


class ClassifyMeasure(SupervisedMeasure):
    """The confusion matrix and what each sample was taken for."""

    def __init__(self, task: Classify, classes: Sequence[str], samples: int, device: torch.device) -> None:
        super().__init__(task)
        self._criterion = task.criterion
        self._classes = tuple(classes)
        self._confusion = torch.zeros(len(classes), len(classes), dtype=torch.int64, device=device)
        self._sums = torch.zeros(3, dtype=torch.float64, device=device)  # loss, hits among the first five, Brier score
        # One row a sample: truth + 1, prediction + 1, confidence. Each rank fills its own rows, the rest stay 0.
        self._answers = torch.zeros(samples, 3, dtype=torch.float64, device=device)

    def add(self, logits: torch.Tensor, batch: Batch) -> None:
        """Add a batch that has these logits."""
        labels = batch.labels
        losses = self._criterion(logits, labels)
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
        rows = (answers[:, 0] > 0).nonzero().squeeze(1)

        def answer(row: int) -> dict[str, Any]:
            truth, taken, confidence = answers[rows[row]].tolist()
            return {"truth": int(truth) - 1, "predicted": int(taken) - 1, "confidence": confidence}

        details = {
            "kind": "classify",
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
            "answers": Answers(rows.tolist(), answer),
        }
        return Evaluation(metrics, details)
