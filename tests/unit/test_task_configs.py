"""Run files of tasks: what chooses the best, which names are known, what a plan says of the data, and the units of an export."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from launcher.machine import Machine
from launcher.plan import plan
from launcher.show import plan_rows
from launcher.start import counts
from tests.pictures import pictures
from tests.trainers import run_file
from trainer.config import Run, UserError, load
from trainer.config.pictures import Pictures
from trainer.config.task import Supervised, Task
from trainer.export import fold
from trainer.report.page import metric_text
from trainer.rundir.metric import is_share, leading, lower_is_better
from trainer.spec import InputSpec
from trainer.tasks.pictures import Pictures as PictureTask
from trainer.tasks.supervised import SupervisedMeasure

CPU = Machine(gpus=0, cores=4)
SPEC = InputSpec(1, 8, (0.5,), (0.25,))


def run(folder: Path, query: str, task: dict[str, Any], **sections: Any) -> Run:
    rows = pictures(folder / "pictures")
    return load(run_file(folder, data={"train": f"csv:{rows}{query}", "val": "split:0.25"}, task=task, **sections))


@pytest.mark.parametrize(
    ("task", "best"),
    [
        ({}, "accuracy"),
        ({"label_smoothing": 0.1}, "accuracy"),
        ({"kind": "multilabel"}, "map"),
        ({"kind": "regress"}, "mae"),
        ({"kind": "multi"}, "loss"),
    ],
)
def test_each_task_chooses_its_best_by_a_metric_of_its_own(tmp_path: Path, task: dict[str, Any], best: str) -> None:
    assert run(tmp_path, "?label=kind", task).checkpoint.best == f"val/{best}"
    assert run(tmp_path, "?label=kind", task, checkpoint={"best": "val/loss"}).checkpoint.best == "val/loss"
    named = {"heads": {"a": {"kind": "regress"}}} if best == "loss" else {}
    with pytest.raises(UserError, match=r"checkpoint\.best is 'val/fid', which \w+ does not measure"):
        run(tmp_path, "?label=kind", {**task, **named}, checkpoint={"best": "val/fid"})


BAD = [
    ({"kind": "multi", "heads": {"kind": {"kind": "clasify"}}}, "'task.heads.kind.kind' is 'clasify'; did you mean 'classify'"),
    ({"kind": "multi", "heads": {"kind": {"gamma": 1.0}}}, "'task.heads.kind.kind' is missing; known: classify, multilabel"),
    ({"kind": "multi", "heads": {"a b": {"kind": "regress"}}}, "'a b' cannot be the name of a head"),
    ({"kind": "multi", "heads": {}}, "name a head"),
    ({"kind": "multilabel", "gama": 2.0}, "unknown key 'task.gama'; did you mean 'gamma'"),
    ({"kind": "regress", "delta": 0.0}, "must be greater than 0"),
]  # fmt: skip


@pytest.mark.parametrize(("task", "words"), BAD)
def test_mistakes_in_a_task_are_named(tmp_path: Path, task: dict[str, Any], words: str) -> None:
    with pytest.raises(UserError) as caught:
        run(tmp_path, "?value=size", task)
    assert words in str(caught.value)


MISFITS = [
    ("?labels=tags", {}, "data.train says tags (labels); write task: {kind: multilabel}"),
    ("?value=size,shade", {"kind": "multilabel"}, "says size (numbers), shade (numbers); write task: {kind: regress}"),
    ("?label=tilted", {"kind": "multi"}, "data.train says one class; write task: {kind: classify}"),
    ("?label=kind&value=size", {"kind": "regress"}, "says kind (one class), size (numbers); write task: {kind: multi}"),
    ("?label=kind&value=size", {"kind": "multi", "heads": {"kid": {"kind": "classify"}}}, "says no 'kid'; did you mean 'kind'"),
    ("?label=kind&value=size", {"kind": "multi", "heads": {"kind": {"kind": "regress"}}}, "write kind: {kind: classify}"),
]  # fmt: skip


@pytest.mark.parametrize(("query", "task", "words"), MISFITS)
def test_data_of_another_kind_is_refused_by_a_plan(tmp_path: Path, query: str, task: dict[str, Any], words: str) -> None:
    asked = run(tmp_path, query, task)
    with pytest.raises(UserError) as caught:
        plan(asked, counts(asked), CPU)
    assert words in str(caught.value)


def test_a_metric_of_a_head_is_checked_when_the_heads_are_known(tmp_path: Path) -> None:
    query = "?label=kind&value=size"
    asked = run(tmp_path, query, {"kind": "multi"}, checkpoint={"best": "val/size_rmse"})
    assert plan(asked, counts(asked), CPU).best == "val/size_rmse"
    asked = run(tmp_path, query, {"kind": "multi"}, checkpoint={"best": "val/size_accuracy"})
    with pytest.raises(UserError, match="'val/size_accuracy', which is not measured"):
        plan(asked, counts(asked), CPU)
    heads = {"size": {"kind": "regress"}}
    with pytest.raises(UserError, match="'val/kind_accuracy', which multi does not measure"):
        run(tmp_path, query, {"kind": "multi", "heads": heads}, checkpoint={"best": "val/kind_accuracy"})


def test_a_plan_says_what_is_known_of_how_many(tmp_path: Path) -> None:
    asked = run(tmp_path, "?label=kind&labels=bright,framed&value=size", {"kind": "multi"})
    planned = plan(asked, counts(asked), CPU)
    rows = dict(plan_rows(planned, "starts"))
    assert rows["data"] == "72 samples, 24 for validation"
    assert rows["kind"] == "bar 24, dot 24, ring 16 (known of 64)"
    assert rows["labels"].startswith("2 labels: bright ")
    assert "(known of 5" in rows["labels"]
    assert rows["size"].startswith("1")
    assert " ± " in rows["size"]
    assert rows["held back"] == "split:0.25 of data.train, stratified by class"
    assert planned.as_json()["targets"][0]["counts"] == [24, 24, 16]


def test_metrics_say_which_way_is_better_and_which_come_first() -> None:
    assert lower_is_better("val/kl")
    metrics = ["val/loss", "val/age_mae", "val/age_r2", "val/tags_map", "val/tags_accuracy", "val/kind_accuracy", "val/kind_ece"]
    assert [lower_is_better(metric) for metric in metrics] == [True, True, False, False, False, False, True]
    assert leading(metrics) == ["val/age_mae", "val/tags_map", "val/kind_accuracy", "val/loss"]
    assert is_share("val/tags_micro_f1")
    assert not is_share("val/age_r2")
    assert metric_text("val/tags_map", 0.5) == "50.0%"
    assert metric_text("val/age_mae", 12.3456) == "12.35"


@pytest.mark.parametrize("base", [Task, Supervised, Pictures, PictureTask, SupervisedMeasure])
def test_a_task_that_leaves_something_out_cannot_be_made(base: Callable[[], object]) -> None:
    with pytest.raises(TypeError, match="abstract"):
        base()


# --- the units of an export


class Side(nn.Module):
    """Two heads side by side, one of them with a hidden layer and an output layer `out`."""

    def __init__(self) -> None:
        super().__init__()
        self.one = nn.Linear(64, 2, bias=False)
        self.two = nn.Module()
        self.two.hidden = nn.Linear(64, 5)
        self.two.out = nn.Linear(5, 1, bias=False)
        self.two.arguments = {"bias": False}  # type: ignore[assignment]

    def forward(self, features: torch.Tensor) -> torch.Tensor:
        hidden = torch.tanh(self.two.hidden(features))  # type: ignore[operator]
        return torch.cat([self.one(features), self.two.out(hidden)], dim=1)  # type: ignore[operator]


def networks() -> dict[str, tuple[nn.Module, str]]:
    torch.manual_seed(0)
    pooled = nn.Sequential(nn.Conv2d(1, 3, 3), nn.AdaptiveAvgPool2d(1), nn.Flatten())
    return {
        "linear": (nn.Sequential(nn.Flatten(), nn.Linear(64, 3)), "1"),
        "no bias": (nn.Sequential(nn.Flatten(), nn.Linear(64, 3, bias=False)), "1"),
        "convolution": (pooled, "0"),
        "side by side": (nn.Sequential(nn.Flatten(), Side()), "1"),
    }


@pytest.mark.parametrize("name", list(networks()))
def test_the_units_go_into_the_last_layer(name: str) -> None:
    network, head = networks()[name]
    scale = torch.tensor([[2.0, 1.0, 0.01], [100.0, 0.0, -3.0]], dtype=torch.float64)
    images = torch.randn(5, 1, 8, 8)
    with torch.no_grad():
        before = network(images).double()
        fold(network, [head], scale, SPEC)
        after = network(images).double()
    torch.testing.assert_close(after, before * scale[0] + scale[1], rtol=1e-5, atol=1e-5)
    if name == "side by side":
        assert network[1].two.arguments == {"bias": True}  # type: ignore[index]


@pytest.mark.parametrize("behind", [nn.ReLU(), nn.LayerNorm(3)])
def test_what_is_changed_behind_the_last_layer_is_refused(behind: nn.Module) -> None:
    network = nn.Sequential(nn.Flatten(), nn.Linear(64, 3), behind)
    scale = torch.tensor([[2.0, 1.0, 1.0], [-50.0, 0.0, 0.0]], dtype=torch.float64)
    with pytest.raises(UserError, match="write standardize: false"):
        fold(network, ["1"], scale, SPEC)
