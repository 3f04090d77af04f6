"""What learns, and what stays in evaluation mode."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from trainer import strategies
from trainer.config import UserError
from trainer.config.strategies import full, head


def network() -> nn.Sequential:
    torch.manual_seed(0)
    return nn.Sequential(
        nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.Dropout(), nn.BatchNorm2d(4, affine=False),
        nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Sequential(nn.Linear(4, 4), nn.BatchNorm1d(4, affine=False)), nn.Linear(4, 5),
    )  # fmt: skip


def test_head_freezes_the_trunk_and_its_running_statistics() -> None:
    net = network()
    strategies.apply(head.Config(), net, ["7"], ["7.weight", "7.bias"], lambda amount: 0)
    assert [name for name, _ in strategies.learning(net)] == ["7.weight", "7.bias"]
    before = {name: value.clone() for name, value in net.state_dict().items()}
    optimizer = torch.optim.SGD([p for _, p in strategies.learning(net)], lr=1.0, weight_decay=0.1)
    for _ in range(3):
        strategies.train_mode(net)
        assert net[2].training
        optimizer.zero_grad()
        net(torch.randn(4, 3, 8, 8)).square().sum().backward()
        optimizer.step()
    changed = {name for name, value in net.state_dict().items() if not torch.equal(value, before[name])}
    assert changed == {"7.weight", "7.bias"}


def test_what_is_fresh_learns_with_the_head_and_full_learns_everything() -> None:
    net = network()
    strategies.apply(head.Config(), net, ["7"], ["0.weight", "1.weight", "6.0.bias"], lambda amount: 0)
    assert [name for name, _ in strategies.learning(net)] == ["0.weight", "1.weight", "6.0.bias", "7.weight", "7.bias"]
    strategies.train_mode(net)
    assert net[1].training  # one of its parameters learns
    assert not net.get_submodule("6.1").training  # it has no parameters, and what stands around it is not all new
    strategies.apply(head.Config(), net, ["6", "7"], [], lambda amount: 0)
    strategies.train_mode(net)
    assert net.get_submodule("6.1").training
    strategies.apply(full.Config(), net, ["7"], [], lambda amount: 0)
    assert len(strategies.learning(net)) == 8
    strategies.train_mode(net)
    assert all(module.training for module in net.modules())


def test_synchronised_batch_norm_and_layers_without_statistics() -> None:
    net = nn.Sequential(nn.SyncBatchNorm(3), nn.BatchNorm2d(3, track_running_stats=False), nn.LayerNorm(3), nn.Linear(3, 2))
    strategies.apply(head.Config(), net, ["3"], [], lambda amount: 0)
    strategies.train_mode(net)
    assert [module.training for module in net] == [False, True, True, True]
    wrapped = nn.ModuleDict({"module": net})  # as DistributedDataParallel wraps it
    strategies.train_mode(wrapped)
    assert not net[0].training


def test_summary_and_nothing_to_learn() -> None:
    net = network()
    strategies.apply(head.Config(), net, ["7"], [], lambda amount: 0)
    found = strategies.summary(net)
    assert (found.learning, found.frozen, found.modules) == (25, 140, ("7",))
    assert str(found) == "25 of 165 parameters learn (15.15%): 7"
    with pytest.raises(UserError, match="leaves nothing that learns"):
        strategies.apply(full.Config(), nn.Flatten(), [], [], lambda amount: 0)
