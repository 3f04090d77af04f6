"""What is measured of labels and numbers: as scikit-learn has it, over what is known, on any number of ranks."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest
import torch
from sklearn import metrics as sk
from torch import nn

from trainer.config.targets import Facts, Target, columns, known
from trainer.config.task import Task as Config
from trainer.config.tasks import classify, multi, multilabel, regress
from trainer.tasks import build_task
from trainer.tasks.base import Evaluation, Task
from trainer.tasks.multi import Part

N = 61
RNG = np.random.default_rng(5)
KIND, TAGS = Target("kind", "class", tuple("xyz")), Target("tags", "labels", tuple("abcd"))
AGES, MASS = Target("age", "values", ("age",)), Target("mass", "values", ("mass",))


class Given(nn.Module):
    """Gives the logits that come as images."""

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        return images


def facts(values: torch.Tensor, *targets: Target) -> Facts:
    rows = [tuple(row) for row in values.tolist()]
    return Facts(tuple(known(target, place, rows) for target, place in zip(targets, columns(targets), strict=True)))


def measured(task: Task, logits: torch.Tensor, values: torch.Tensor, ranks: int = 1, batch: int = 8) -> Evaluation:
    """An evaluation over so many ranks, whose tensors are summed as the runtime does."""
    measures = []
    for rank in range(ranks):
        measure = task.measure(len(logits), torch.device("cpu"))
        mine = torch.arange(rank, len(logits), ranks)
        for places in mine.split(batch):  # type: ignore[no-untyped-call]
            labels = torch.zeros(len(places), dtype=torch.int64)
            measure.update(Given(), Part(logits[places], labels, places, values[places]))
        measures.append(measure)
    for tensors in zip(*(measure.tensors() for measure in measures), strict=True):
        total = torch.stack(list(tensors)).sum(dim=0)
        for tensor in tensors:
            tensor.copy_(total)
    return measures[-1].result()


def tagged(share: float = 0.25) -> tuple[torch.Tensor, torch.Tensor]:
    logits = torch.tensor(RNG.normal(size=(N, 4)).round(1), dtype=torch.float32)  # rounded: equal scores come about
    truth = torch.tensor(RNG.random((N, 4)) < 0.35, dtype=torch.float32)
    return logits, torch.where(torch.tensor(RNG.random((N, 4)) < share), math.nan, truth)


def test_labels_are_measured_as_sklearn_does_over_what_is_known() -> None:
    logits, values = tagged()
    task = build_task(multilabel.Config(threshold=0.4), facts(values, TAGS))
    result = measured(task, logits, values)
    p = logits.double().sigmoid().numpy()
    truths, scores = [], []
    for label in range(4):
        there = ~values[:, label].isnan().numpy()
        truths.append(values[there, label].numpy())
        scores.append(p[there, label])
    said = [s >= 0.4 for s in scores]
    ap = [sk.average_precision_score(t, s) for t, s in zip(truths, scores, strict=True)]
    f1 = [sk.f1_score(t, s) for t, s in zip(truths, said, strict=True)]
    metrics = result.metrics
    assert metrics["map"] == pytest.approx(np.mean(ap), abs=1e-12)
    assert metrics["f1"] == pytest.approx(np.mean(f1), abs=1e-12)
    flat, answers = np.concatenate(truths), np.concatenate(said)
    assert metrics["micro_f1"] == pytest.approx(sk.f1_score(flat, answers))
    assert metrics["accuracy"] == pytest.approx(sk.accuracy_score(flat, answers))
    rows = result.details["per_label"]
    for label, row in enumerate(rows):
        precision, recall, *_ = sk.precision_recall_fscore_support(truths[label], said[label], average="binary")
        assert (row["precision"], row["recall"]) == (pytest.approx(precision), pytest.approx(recall))
        assert (row["support"], row["known"]) == (int(truths[label].sum()), len(truths[label]))
    whole = [
        all((p[i, j] >= 0.4) == (values[i, j] > 0.5) for j in range(4) if not values[i, j].isnan())
        for i in range(N) if not values[i].isnan().all()
    ]  # fmt: skip
    assert metrics["exact"] == pytest.approx(np.mean(whole))
    assert metrics["loss"] == pytest.approx(
        float(task.losses(logits, Part(logits, logits, logits, values))["task"].sum()) / len(whole)
    )


def test_without_unknown_labels_it_is_sklearns_own_average() -> None:
    logits, values = tagged(0.0)
    metrics = measured(build_task(multilabel.Config(), facts(values, TAGS)), logits, values).metrics
    truth, p = values.numpy(), logits.double().sigmoid().numpy()
    assert metrics["map"] == pytest.approx(sk.average_precision_score(truth, p, average="macro"))
    assert metrics["f1"] == pytest.approx(sk.f1_score(truth, p >= 0.5, average="macro"))
    assert metrics["micro_f1"] == pytest.approx(sk.f1_score(truth, p >= 0.5, average="micro"))
    assert metrics["exact"] == pytest.approx(sk.accuracy_score(truth, p >= 0.5))


def test_a_label_that_no_image_has_is_left_out_of_the_ranking() -> None:
    logits, values = tagged()
    values[:, 1] = 0
    values[:, 2] = math.nan
    given = facts(values, TAGS)
    result = measured(build_task(multilabel.Config(), given), logits, values)
    rows = result.details["per_label"]
    assert rows[1]["ap"] is None
    assert rows[2]["known"] == 0
    assert result.metrics["map"] == pytest.approx((rows[0]["ap"] + rows[3]["ap"]) / 2)
    assert result.metrics["f1"] == pytest.approx((rows[0]["f1"] + rows[1]["f1"] + rows[3]["f1"]) / 3)


def test_numbers_are_measured_in_their_units() -> None:
    truth = torch.tensor(RNG.normal(50, 9, (N, 2)), dtype=torch.float32)
    values = torch.where(torch.tensor(RNG.random((N, 2)) < 0.2), math.nan, truth)
    given = facts(values, AGES, MASS)
    task = build_task(regress.Config(), given)
    assert task.scale is not None
    logits = torch.tensor(RNG.normal(size=(N, 2)), dtype=torch.float32)
    result = measured(task, logits, values)
    said = (logits.double() * task.scale[0] + task.scale[1]).numpy()
    wanted: dict[str, list[float]] = {"mae": [], "rmse": [], "r2": [], "pearson": []}
    for place in range(2):
        there = ~values[:, place].isnan().numpy()
        t, s = values[there, place].double().numpy(), said[there, place]
        wanted["mae"].append(sk.mean_absolute_error(t, s))
        wanted["rmse"].append(sk.root_mean_squared_error(t, s))
        wanted["r2"].append(sk.r2_score(t, s))
        wanted["pearson"].append(float(np.corrcoef(t, s)[0, 1]))
        row = result.details["per_value"][place]
        assert [row[key] for key in wanted] == pytest.approx([column[place] for column in wanted.values()])
        np.testing.assert_allclose(np.array(result.details["points"][row["name"]])[:, 1], s)
    assert {key: result.metrics[key] for key in wanted} == pytest.approx({key: np.mean(column) for key, column in wanted.items()})
    assert given.targets[0].mean[0] == pytest.approx(np.nanmean(values[:, 0].double().numpy()))
    assert given.targets[0].std[0] == pytest.approx(np.nanstd(values[:, 0].double().numpy()))


def test_figures_without_a_meaning_are_none() -> None:
    values = torch.tensor([[1.0, math.nan], [1.0, math.nan]])
    task = build_task(
        regress.Config(standardize=False), facts(torch.tensor([[1.0, 2.0], [3.0, 4.0]]), AGES, Target("m", "values", ("m",)))
    )
    result = measured(task, torch.zeros(2, 2), values)
    one, other = result.details["per_value"]
    assert (one["mae"], one["r2"], one["pearson"]) == (1.0, None, None)
    assert other["mae"] is None
    assert result.metrics["mae"] == 1.0
    assert math.isnan(result.metrics["r2"])


def several() -> tuple[torch.Tensor, torch.Tensor]:
    logits, tags = tagged()
    kind = torch.tensor(RNG.integers(0, 3, (N, 1)), dtype=torch.float32)
    age = torch.tensor(RNG.normal(30, 5, (N, 1)), dtype=torch.float32)
    unknown = torch.tensor(RNG.random((N, 2)) < 0.3)
    kind, age = torch.where(unknown[:, :1], math.nan, kind), torch.where(unknown[:, 1:], math.nan, age)
    more = torch.tensor(RNG.normal(size=(N, 4)), dtype=torch.float32)
    return torch.cat([more[:, :1], logits, more[:, 1:]], dim=1), torch.cat([kind, tags, age], dim=1)


def test_heads_are_their_tasks_over_the_samples_that_say_something_of_them() -> None:
    logits, values = several()
    heads = {
        "age": {"kind": "regress"},
        "tags": {"kind": "multilabel"},
        "kind": {"kind": "classify", "class_weights": "balanced"},
    }
    given = facts(values, KIND, TAGS, AGES)
    task = build_task(multi.Config.model_validate({"heads": heads}), given)
    assert [(o.name, o.kind, len(o.labels)) for o in task.outputs] == [
        ("age", "values", 1),
        ("tags", "labels", 4),
        ("kind", "class", 3),
    ]
    result = measured(task, logits, values)
    age, tags, kinds = logits[:, :1], logits[:, 1:5], logits[:, 5:]
    alone: dict[str, tuple[Config, torch.Tensor, torch.Tensor, Target]] = {
        "age": (regress.Config(), age, values[:, 5:], AGES),
        "tags": (multilabel.Config(), tags, values[:, 1:5], TAGS),
    }
    for name, (config, own, truth, target) in alone.items():
        plain = measured(build_task(config, facts(truth, target)), own, truth)
        for key, value in plain.metrics.items():
            assert result.metrics[f"{name}_{key}"] == pytest.approx(value, rel=1e-12), (name, key)
    there = ~values[:, 0].isnan()
    right = (kinds.argmax(dim=1) == values[:, 0])[there].double().mean()
    assert result.metrics["kind_accuracy"] == pytest.approx(float(right))
    losses = task.losses(logits, Part(logits, logits, logits, values))
    assert list(losses) == ["age", "tags", "kind"]
    assert losses["kind"][~there].eq(0).all()
    assert result.metrics["loss"] == pytest.approx(float(torch.stack(list(losses.values())).sum()) / N)
    answers = result.details["answers"]
    assert [answer["index"] for answer in answers] == list(range(N))
    assert [answer["heads"]["kind"] is None for answer in answers] == (~there).tolist()
    assert task.scale is not None
    assert task.scale[:, 1:].tolist() == [[1.0] * 7, [0.0] * 7]


@pytest.mark.parametrize("kind", ["multilabel", "regress", "multi"])
def test_three_ranks_measure_what_one_does(kind: str) -> None:
    logits, values = several()
    config: Any = {"multilabel": multilabel, "regress": regress, "multi": multi}[kind].Config()
    if kind == "multilabel":
        task, logits, values = build_task(config, facts(values[:, 1:5], TAGS)), logits[:, 1:5], values[:, 1:5]
    elif kind == "regress":
        task, logits, values = build_task(config, facts(values[:, 5:], AGES)), logits[:, :1], values[:, 5:]
    else:
        task = build_task(config, facts(values, KIND, TAGS, AGES))
    one, three = measured(task, logits, values), measured(task, logits, values, ranks=3, batch=5)
    assert three.metrics == pytest.approx(one.metrics, rel=1e-12)
    assert list(three.details.pop("answers")) == list(one.details.pop("answers"))
    assert str(three.details) == str(one.details) or kind == "multi"


def test_nothing_to_measure_is_no_error() -> None:
    task = build_task(multi.Config(), facts(several()[1], KIND, TAGS, AGES))
    names = task.measure(0, torch.device("cpu")).result().metrics
    config = multi.Config(heads={"kind": classify.Config(), "tags": multilabel.Config(), "age": regress.Config()})
    assert set(names) | {"kind_top5"} == set(config.measured() or ())


def test_a_single_head_is_the_tasks_only_loss() -> None:
    logits, values = several()
    task = build_task(multi.Config(heads={"age": regress.Config()}), facts(values, KIND, TAGS, AGES))
    assert list(task.losses(logits[:, :1], Part(logits, logits, logits, values))) == ["task"]
