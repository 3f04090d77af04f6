"""Regression: a number for each image, or several."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch

from trainer.config.targets import Facts
from trainer.config.tasks.regress import Config
from trainer.losses.values import ValueLoss
from trainer.spec import Output
from trainer.tasks.answers import Answers
from trainer.tasks.base import Batch, Evaluation
from trainer.tasks.supervised import Supervised, SupervisedMeasure, with_auxiliary

_POINTS = 1000  # of a value, that the report draws


def build(config: Config, facts: Facts) -> Regress:
    """The task for the numbers of the training data."""
    return Regress(config, facts)


class Regress(Supervised):
    """Numbers in the units of the data, learnt as (value - mean) / deviation of the training samples."""

    def __init__(self, config: Config, facts: Facts) -> None:
        known = config.learnt(facts)
        self.names = tuple(name for one in known for name in one.target.labels)
        self._config = config
        std = [value for one in known for value in one.std]
        mean = [value for one in known for value in one.mean]
        self.std = torch.tensor(std, dtype=torch.float64)
        self._scale = torch.tensor([std, mean], dtype=torch.float64) if config.standardize else None
        self._loss = ValueLoss(config.loss, config.delta)

    @property
    def outputs(self) -> tuple[Output, ...]:
        """One head with a number for each value."""
        return (Output("", self.names, "values"),)

    @property
    def scale(self) -> torch.Tensor | None:
        """Deviations and means."""
        return self._scale

    def criterion(self, logits: torch.Tensor, truth: torch.Tensor) -> torch.Tensor:
        """The loss [n] of what the network gives, against the truth in the data's units."""
        if self._scale is not None:
            factor, shift = self._scale.to(truth.device, torch.float32)
            truth = (truth - shift) / factor
        return self._loss(logits, truth)

    def told(self, logits: torch.Tensor) -> torch.Tensor:
        """What the network gives, in the data's units and double precision."""
        logits = logits.double()
        if self._scale is None:
            return logits
        factor, shift = self._scale.to(logits.device)
        return torch.addcmul(shift, logits, factor)

    def losses(self, output: object, batch: Batch) -> dict[str, torch.Tensor]:
        """One loss."""
        truth = batch.values
        assert truth is not None
        return {"task": with_auxiliary(output, self._config.aux_weight, lambda logits: self.criterion(logits, truth))}

    def measure(self, samples: int, device: torch.device) -> ValueMeasure:
        """Rows on the device until the evaluation ends."""
        return ValueMeasure(self, samples, device)

    def predictions(self, logits: torch.Tensor, top: int) -> list[dict[str, Any]]:
        """{values: {name: number}} of each image."""
        del top
        return [{"values": dict(zip(self.names, row, strict=True))} for row in self.told(logits).tolist()]


class ValueMeasure(SupervisedMeasure):
    """What was said of each sample and what is known of it."""

    def __init__(self, task: Regress, samples: int, device: torch.device) -> None:
        super().__init__(task)
        self._regress, self._names, self._std = task, task.names, task.std
        self._loss = torch.zeros(2, dtype=torch.float64, device=device)  # sum, and samples of which something is known
        # One row a sample: whether it was seen, the numbers said, the truths (NaN: not known). Each rank fills its own.
        self._rows = torch.zeros(samples, 1 + 2 * len(task.names), dtype=torch.float64, device=device)

    def add(self, logits: torch.Tensor, batch: Batch) -> None:
        """Add a batch that has these logits."""
        truth = batch.values
        assert truth is not None
        said = (~truth.isnan()).any(dim=1)
        losses = self._regress.criterion(logits, truth).double()
        self._loss += torch.stack([(losses * said).sum(), said.sum().double()])
        seen = torch.ones(len(logits), 1, dtype=torch.float64, device=logits.device)
        rows = batch.indices.to(logits.device)
        self._rows[rows] = torch.cat([seen, self._regress.told(logits), truth.double()], dim=1)

    def tensors(self) -> Sequence[torch.Tensor]:
        """What is to be summed over the ranks, in place."""
        return self._loss, self._rows

    def result(self) -> Evaluation:
        """Over what is known, in the data's units: mean absolute error, root of the mean squared error, coefficient of
        determination, correlation (Pearson), each the mean over the values; the loss is that of the training.
        """
        whole = self._rows.cpu()
        rows = (whole[:, 0] > 0).nonzero().squeeze(1)
        said, truth = whole[rows, 1 : 1 + len(self._names)], whole[rows, 1 + len(self._names) :]
        per_value = []
        for index, name in enumerate(self._names):
            known = ~truth[:, index].isnan()
            per_value.append({"name": name, **_figures(said[known, index], truth[known, index]), "std": float(self._std[index])})
        total, count = self._loss.tolist()
        metrics = {"loss": total / max(1, count)}
        for key in ("mae", "rmse", "r2", "pearson"):
            values = [value[key] for value in per_value if value[key] is not None]
            metrics[key] = sum(values) / len(values) if values else float("nan")

        def answer(place: int) -> dict[str, Any]:
            return {
                "truth": [None if value != value else value for value in truth[place].tolist()],
                "predicted": said[place].tolist(),
            }

        details = {
            "kind": "regress", "samples": len(rows), "values": list(self._names), "per_value": per_value,
            "points": {name: _points(truth[:, i], said[:, i]) for i, name in enumerate(self._names)},
            "answers": Answers(rows.tolist(), answer),
        }  # fmt: skip
        return Evaluation(metrics, details)


def _figures(said: torch.Tensor, truth: torch.Tensor) -> dict[str, Any]:
    """The figures of a value, none where they have no meaning: nothing is known, or all truths are equal."""
    if not len(truth):
        return {"mae": None, "rmse": None, "r2": None, "pearson": None, "support": 0}
    error = said - truth
    spread, own = truth - truth.mean(), said - said.mean()
    around, within = float(spread.square().sum()), float(own.square().sum())
    return {
        "mae": float(error.abs().mean()),
        "rmse": float(error.square().mean().sqrt()),
        "r2": 1 - float(error.square().sum()) / around if around > 0 else None,
        "pearson": float((spread * own).sum()) / (around * within) ** 0.5 if around > 0 and within > 0 else None,
        "support": len(truth),
    }


def _points(truth: torch.Tensor, said: torch.Tensor) -> list[list[float]]:
    """(truth, said) of evenly spread samples."""
    known = (~truth.isnan()).nonzero().squeeze(1)
    known = known[:: max(1, -(-len(known) // _POINTS))]
    return torch.stack([truth[known], said[known]], dim=1).tolist()
