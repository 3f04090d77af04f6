"""Optimizers of libraries: found by name, saved and restored to the bit whatever they keep; schedules at chosen points."""

from __future__ import annotations

import json
import math
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from pydantic import TypeAdapter, ValidationError
from timm.optim._optim_factory import list_optimizers
from torch import nn

from tests.trainers import run_file
from trainer.config import UserError, load
from trainer.config.optimizers import AnyOptimizer, Optimizer
from trainer.config.schedules import AnySchedule, Plateau
from trainer.optim import FreeAverage, build_momentum, build_optimizer, build_schedule, pack, reaction, set_momentum, unpack
from trainer.progress import Progress
from trainer.spec import ParamGroup

REFUSED = ("adahessian", "kron", "kronc", "kronw")
NAMES = [str(name) for name in list_optimizers() if not str(name).startswith(("bnb", "fused")) and name not in REFUSED]
OTHERS: list[dict[str, Any]] = [
    {"kind": "sgd", "lr": 0.1, "momentum": 0.9}, {"kind": "adamw", "lr": 0.01}, {"kind": "prodigy"},
    {"kind": "prodigy", "args": {"safeguard_warmup": True, "d_coef": 2.0}},
    *({"kind": "schedule_free", "name": name, "lr": 0.05} for name in ("sgd", "adamw", "radam")),
    *({"kind": "torch", "name": name, "lr": 0.01} for name in ("NAdam", "RAdam", "RMSprop", "Adagrad", "Adadelta", "ASGD",
                                                              "Rprop", "Adamax", "Adafactor")),
]  # fmt: skip


def config(given: dict[str, Any]) -> Optimizer:
    found: Optimizer = TypeAdapter(AnyOptimizer).validate_python(given)
    return found


def network() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.Flatten(), nn.Linear(16, 8), nn.ReLU(), nn.Linear(8, 2))


def grouped(net: nn.Module) -> list[ParamGroup]:
    named = list(net.named_parameters())
    return [ParamGroup(named[-2:], 1.0), ParamGroup(named[:-2], 0.5)]


def alike(net: nn.Module) -> list[ParamGroup]:
    return [ParamGroup(list(net.named_parameters()))]


def steps(net: nn.Module, optimizer: torch.optim.Optimizer, first: int, count: int) -> None:
    for step in range(first, first + count):
        inputs = torch.randn(6, 3, 4, 4, generator=torch.Generator().manual_seed(step))
        net(inputs).square().sum(dim=1).mean().backward()
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)


@pytest.mark.parametrize(
    "given", [*OTHERS, *({"kind": "timm", "name": name, "lr": 0.01} for name in NAMES)],
    ids=lambda given: f"{given['kind']}-{given.get('name', '')}",
)  # fmt: skip
def test_a_state_goes_on_to_the_bit(given: dict[str, Any]) -> None:
    whole, broken = network(), network()
    group = alike if given["kind"] == "prodigy" else grouped
    optimizer = build_optimizer(config(given), group(whole))
    torch.manual_seed(1)
    steps(whole, optimizer, 0, 3)
    tensors, packed = pack(optimizer, {parameter: name for name, parameter in whole.named_parameters()})
    saved = {name: value.clone() for name, value in tensors.items()}
    broken.load_state_dict({name: value.clone() for name, value in whole.state_dict().items()})
    torch.manual_seed(2)
    steps(whole, optimizer, 3, 3)
    again = build_optimizer(config(given), group(broken))
    unpack(again, dict(broken.named_parameters()), saved, json.loads(json.dumps(packed)))
    torch.manual_seed(2)
    steps(broken, again, 3, 3)
    for (name, one), two in zip(whole.state_dict().items(), broken.state_dict().values(), strict=True):
        assert torch.equal(one, two), name
    assert not torch.equal(whole.state_dict()["3.weight"], network().state_dict()["3.weight"]), "it moves"


@pytest.mark.parametrize(
    ("given", "said"),
    [
        ({"kind": "timm", "name": "lam", "lr": 0.1}, "timm has no optimizer 'lam'; did you mean 'lamb'"),
        ({"kind": "timm", "name": "adahessian", "lr": 0.1}, "second derivatives"),
        ({"kind": "timm", "name": "lamb", "lr": 1.0, "args": {"trust_clp": 1}}, "no 'trust_clp'; did you mean 'trust_clip'"),
        ({"kind": "timm", "name": "kron", "lr": 0.1}, "random state of its own"),
        ({"kind": "prodigy"}, "one learning rate for all"),
        ({"kind": "timm", "name": "fusedlamb", "lr": 0.1}, "needs NVIDIA's apex, which is not installed here"),
        ({"kind": "timm", "name": "bnbadamw8bit", "lr": 0.1, "args": {"min_8bit": 1}}, "did you mean 'min_8bit_size'"),
        ({"kind": "torch", "name": "Nadam", "lr": 0.1}, "torch.optim has no 'Nadam'; did you mean 'NAdam'"),
        ({"kind": "torch", "name": "LBFGS", "lr": 0.1}, "several times a step"),
        ({"kind": "torch", "name": "Rprop", "lr": 0.1, "weight_decay": 0.1}, "weight_decay: torch.optim.Rprop has none"),
        ({"kind": "torch", "name": "Muon", "lr": 0.1}, "Muon"),
        ({"kind": "prodigy", "args": {"lr": 2.0}}, "write 'lr' as optimizer.lr"),
        ({"kind": "schedule_free", "lr": 0.1, "args": {"warmup_steps": 5}}, "schedule.warmup"),
    ],
)
def test_what_a_library_does_not_know_is_refused(given: dict[str, Any], said: str) -> None:
    with pytest.raises(UserError, match=said):
        build_optimizer(config(given), (alike if "lr" in str(given.get("args")) else grouped)(network()))


def test_without_bitsandbytes_its_optimizers_are_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("bitsandbytes", "bitsandbytes.optim"):
        monkeypatch.setitem(sys.modules, name, None)
    with pytest.raises(UserError, match="bnblion8bit needs bitsandbytes, which is not installed here"):
        build_optimizer(config({"kind": "timm", "name": "bnblion8bit", "lr": 0.1}), grouped(network()))


def test_eight_bit_states_are_eight_bit() -> None:
    net = network()
    given = {"kind": "timm", "name": "bnbsgd8bit", "lr": 0.01, "args": {"min_8bit_size": 4}}
    optimizer = build_optimizer(config(given), grouped(net))
    steps(net, optimizer, 0, 2)
    assert {state["state1"].dtype for state in optimizer.state.values()} >= {torch.uint8}


def test_muon_of_timm_takes_all_parameters() -> None:
    net = network()
    optimizer = build_optimizer(config({"kind": "timm", "name": "muon", "lr": 0.01}), grouped(net))
    steps(net, optimizer, 0, 1)
    assert sum(len(group["params"]) for group in optimizer.param_groups) == len(list(net.parameters()))


@pytest.mark.parametrize("name", ["sgd", "adamw", "radam"])
def test_a_schedule_free_average_is_the_optimizers_own_and_changes_nothing(name: str) -> None:
    net = network()
    optimizer = build_optimizer(config({"kind": "schedule_free", "name": name, "lr": 0.05}), grouped(net))
    steps(net, optimizer, 0, 8)
    before = {key: value.clone() for key, value in net.state_dict().items()}
    average = FreeAverage(net, optimizer)
    found = average.state
    average.swap()
    swapped = {key: value.clone() for key, value in net.state_dict().items()}
    average.swap()
    assert all(torch.equal(value, before[key]) for key, value in net.state_dict().items()), "put back to the bit"
    optimizer.eval()  # type: ignore[attr-defined]
    for key, value in net.state_dict().items():
        assert torch.allclose(value.float(), found[key].float(), atol=1e-6), key
        assert torch.equal(swapped[key], found[key]), key
    assert not torch.equal(found["3.weight"], before["3.weight"])


def schedule(**given: Any) -> Any:
    made = TypeAdapter(AnySchedule).validate_python(given)
    return build_schedule(made, total=1000, epoch_samples=100, step_samples=10)


def test_schedules_at_chosen_points() -> None:
    wsd = schedule(kind="wsd", decay=0.2, shape="linear", warmup=0.1)
    assert [wsd(s) for s in (0, 90, 500, 799, 800, 900)] == pytest.approx([0.1, 1.0, 1.0, 1.0, 1.0, 0.5])
    assert schedule(kind="wsd", decay=0.2)(850) == pytest.approx(1 - math.sqrt(0.25))
    poly = schedule(kind="polynomial", power=2, end=0.1)
    assert [poly(s) for s in (0, 500)] == pytest.approx([1.0, 0.1 + 0.9 * 0.25])
    restarts = schedule(kind="cosine_restarts", every="200 samples", decay=0.5)
    assert [restarts(s) for s in (0, 100, 200, 300, 400)] == pytest.approx([1.0, 0.5, 0.5, 0.25, 0.25])
    root = schedule(kind="inverse_sqrt", scale="1 epoch")
    assert [root(s) for s in (0, 300, 800)] == pytest.approx([1.0, 0.5, 1 / 3])
    cycle = schedule(kind="one_cycle", warmup=0.5, start=0.1, end=0.0)
    assert [cycle(s) for s in (240, 490, 500, 750)] == pytest.approx([0.55, 1.0, 1.0, 0.5])


def test_one_cycle_moves_the_momentum_against_the_rate() -> None:
    made = TypeAdapter(AnySchedule).validate_python({"kind": "one_cycle", "warmup": 0.5, "momentum": [0.8, 0.9]})
    momentum = build_momentum(made, total=1000, epoch_samples=100, step_samples=10)
    assert momentum is not None
    assert [momentum(s) for s in (240, 490, 500, 750)] == pytest.approx([0.85, 0.8, 0.8, 0.85])
    net = network()
    adam = build_optimizer(config({"kind": "adamw", "lr": 0.1}), grouped(net))
    set_momentum(adam, 0.7)
    assert [group["betas"] for group in adam.param_groups] == [(0.7, 0.999)] * 2


def test_a_plateau_damps_after_its_patience_and_not_below_its_end() -> None:
    react = reaction(Plateau(metric="val/loss", gamma=0.1, patience=1, min_delta=0.01, end=0.005), "val/accuracy")
    progress, seen = Progress(), []
    for loss in (1.0, 0.9, 0.895, 0.92, 0.5, 0.6, 0.6, 0.6, 0.6, 0.6, 0.6):
        progress.metrics = {"val/loss": loss}
        react(progress)
        seen.append(progress.damping)
    assert seen == pytest.approx([1, 1, 1, 0.1, 0.1, 0.1, 0.01, 0.01, 0.005, 0.005, 0.005])
    react = reaction(Plateau(patience=0), "val/accuracy")
    progress = Progress(metrics={"val/accuracy": 0.5})
    react(progress)
    progress.metrics = {"val/accuracy": 0.6}
    react(progress)
    assert (progress.damping, progress.plateau_best) == (1.0, 0.6)
    assert Progress.from_dict(progress.as_dict()) == progress


@pytest.mark.parametrize(
    ("settings", "said"),
    [
        (["optimizer={kind: schedule_free, lr: 0.1}", "train.ema=null"], "schedule_free has no schedule"),
        (["optimizer={kind: schedule_free, lr: 0.1}", "schedule={kind: constant}"], "averages the weights itself"),
        (["schedule={kind: plateau}", "data.val=null", "checkpoint.best=val/accuracy"], "plateau needs validation data"),
        (["schedule={kind: plateau, metric: val/acuracy}"], "did you mean 'val/accuracy'"),
    ],
)
def test_what_does_not_go_together_is_refused(tmp_path: Path, settings: list[str], said: str) -> None:
    with pytest.raises((UserError, ValidationError), match=said):
        load(run_file(tmp_path), settings)
