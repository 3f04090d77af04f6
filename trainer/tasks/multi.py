"""Several tasks at once: each has its part of the logits, and of what is known of an image."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch

from trainer.config import UserError
from trainer.config.targets import Facts, columns
from trainer.config.tasks.multi import Config
from trainer.spec import Output
from trainer.tasks import build_task
from trainer.tasks.answers import Answers
from trainer.tasks.base import Batch, Evaluation, Measure, Task
from trainer.tasks.supervised import Supervised, SupervisedMeasure, tensors


def build(config: Config, facts: Facts) -> Multi:
    """The task for the targets of the training data that have a head."""
    return Multi(config, facts)


@dataclass
class Part:
    """What a head sees of a batch: classes (0 where none is known) or values, and which samples they are of."""

    images: torch.Tensor
    labels: torch.Tensor
    indices: torch.Tensor
    values: torch.Tensor | None


@dataclass(frozen=True)
class Head:
    """A task with its columns of the logits and of the values."""

    name: str
    task: Task
    logits: slice
    values: slice
    classes: bool

    def part(self, batch: Batch) -> tuple[Part, torch.Tensor]:
        """(what the head sees, which samples say something of it [n])."""
        assert batch.values is not None
        values = batch.values[:, self.values]
        known = ~values.isnan()
        if self.classes:
            labels = torch.where(known, values, 0.0).squeeze(1).long()
            return Part(batch.images, labels, batch.indices, None), known.squeeze(1)
        return Part(batch.images, batch.labels, batch.indices, values), known.any(dim=1)


class Multi(Supervised):
    """Heads side by side, each a task of its own; their losses have the heads' names, and what is not known costs nothing."""

    def __init__(self, config: Config, facts: Facts) -> None:
        given, known = config.given(facts), config.learnt(facts)
        places = dict(zip((k.target.name for k in facts.targets), columns([k.target for k in facts.targets]), strict=True))
        heads: list[Head] = []
        start = 0
        for one in known:
            name = one.target.name
            try:
                task = build_task(given[name], Facts((replace(one, target=replace(one.target, name="")),)))
            except UserError as error:
                raise UserError(str(error).replace("task.", f"task.heads.{name}.", 1)) from None
            width = len(one.target.labels)
            place = places[name]
            logits, values = slice(start, start + width), slice(place.start, place.stop)
            heads.append(Head(name, task, logits, values, one.target.kind == "class"))
            start += width
        self.heads = tuple(heads)

    @property
    def outputs(self) -> tuple[Output, ...]:
        """The heads by name."""
        return tuple(replace(output, name=head.name) for head in self.heads for output in head.task.outputs)

    @property
    def scale(self) -> torch.Tensor | None:
        """That of each head, 1 and 0 where it has none."""
        if all(head.task.scale is None for head in self.heads):
            return None
        width = self.heads[-1].logits.stop
        found = torch.stack([torch.ones(width, dtype=torch.float64), torch.zeros(width, dtype=torch.float64)])
        for head in self.heads:
            if head.task.scale is not None:
                found[:, head.logits] = head.task.scale
        return found

    def losses(self, output: object, batch: Batch) -> dict[str, torch.Tensor]:
        """A loss for each head; `task` where there is one head."""
        given = tensors(output)
        found: dict[str, torch.Tensor] = {}
        for head in self.heads:
            part, known = head.part(batch)
            (losses,) = head.task.losses([logits[:, head.logits] for logits in given], part).values()
            found[head.name] = torch.where(known, losses, 0.0)
        return found if len(found) > 1 else {"task": found.popitem()[1]}

    def measure(self, samples: int, device: torch.device) -> MultiMeasure:
        """A measure of each head."""
        return MultiMeasure(self, samples, device)

    def predictions(self, logits: torch.Tensor, top: int) -> list[dict[str, Any]]:
        """{heads: {name: what that head says}} of each image."""
        each = [head.task.predictions(logits[:, head.logits], top) for head in self.heads]
        names = [head.name for head in self.heads]
        return [{"heads": dict(zip(names, said, strict=True))} for said in zip(*each, strict=True)]


class MultiMeasure(SupervisedMeasure):
    """The measures of the heads, each over the samples that say something of it."""

    def __init__(self, task: Multi, samples: int, device: torch.device) -> None:
        super().__init__(task)
        self._multi = task
        self._measures: list[Measure] = [head.task.measure(samples, device) for head in task.heads]
        self._loss = torch.zeros(2, dtype=torch.float64, device=device)  # sum over heads and samples, samples
        self._seen = torch.zeros(samples, dtype=torch.uint8, device=device)

    def add(self, logits: torch.Tensor, batch: Batch) -> None:
        """Add a batch that has these logits."""
        losses = torch.stack(list(self._multi.losses(logits, batch).values())).double().sum()
        self._loss += torch.stack([losses, losses.new_tensor(len(logits))])
        self._seen[batch.indices.to(logits.device)] = 1
        for head, measure in zip(self._multi.heads, self._measures, strict=True):
            part, known = head.part(batch)
            on_host = known.to(part.indices.device)
            values = None if part.values is None else part.values[known]
            chosen = Part(part.images, part.labels[known], part.indices[on_host], values)
            measure.add(logits[known][:, head.logits], chosen)

    def tensors(self) -> Sequence[torch.Tensor]:
        """What is to be summed over the ranks, in place."""
        return self._loss, self._seen, *(tensor for measure in self._measures for tensor in measure.tensors())

    def result(self) -> Evaluation:
        """`loss`, the sum of the heads' as it is learnt, and each head's own figures with its name before them."""
        total, count = self._loss.tolist()
        metrics = {"loss": total / max(1, count)}
        heads: dict[str, Any] = {}
        said: dict[str, dict[int, int]] = {}
        answers: dict[str, Answers] = {}
        for head, measure in zip(self._multi.heads, self._measures, strict=True):
            result = measure.result()
            metrics |= {f"{head.name}_{name}": value for name, value in result.metrics.items()}
            details = dict(result.details)
            answers[head.name] = details.pop("answers")
            said[head.name] = {index: row for row, index in enumerate(answers[head.name].indices)}
            heads[head.name] = {**details, "metrics": result.metrics}
        rows = self._seen.cpu().nonzero().squeeze(1).tolist()

        def answer(place: int) -> dict[str, Any]:
            index = rows[place]
            found = {name: answers[name][spots[index]] if index in spots else None for name, spots in said.items()}
            return {"heads": found}

        return Evaluation(metrics, {"kind": "multi", "samples": len(rows), "heads": heads, "answers": Answers(rows, answer)})
