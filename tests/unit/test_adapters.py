"""Adapters of peft beside frozen weights: what they change, where they stand, and that they can be merged."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
from torch import nn
from torchvision import models

from trainer import strategies
from trainer.config import UserError
from trainer.config.strategies.lora import Config


def vit() -> nn.Module:
    torch.manual_seed(0)
    network: nn.Module = models.VisionTransformer(16, 8, 2, 2, 16, 32, num_classes=5)
    nn.init.normal_(network.get_parameter("heads.head.weight"), std=0.1)
    return network.eval()


def resnet() -> nn.Module:
    torch.manual_seed(0)
    network: nn.Module = models.resnet18(num_classes=5)
    return network.eval()


HEADS = {"vit": "heads.head", "resnet": "fc"}


def grafted(network: nn.Module, head: str, config: Config, fresh: list[str] | None = None) -> list[tuple[str, nn.Parameter]]:
    strategies.inject(config, network, [head], fresh or [], seed=3)
    (group,) = strategies.apply(config, network, [head], fresh or [], lambda amount: 0)
    return group.parameters


BOTH = [(method, kind) for method in ("lora", "dora", "loha", "lokr", "ia3", "oft") for kind in ("vit", "resnet")]


@pytest.mark.parametrize(("method", "kind"), [pair for pair in BOTH if pair != ("oft", "resnet")])  # refused: see below
def test_it_starts_as_the_trunk_learns_beside_it_and_merges(method: Any, kind: str) -> None:
    network = vit() if kind == "vit" else resnet()
    before = copy.deepcopy(network)
    images = torch.randn(2, 3, 16, 16) if kind == "vit" else torch.randn(2, 3, 32, 32)
    learning = grafted(network, HEADS[kind], Config(method=method, rank=4))
    network.eval()
    with torch.no_grad():
        assert torch.allclose(network(images), before(images), atol=1e-5)
    frozen = {name: value.detach().clone() for name, value in network.named_parameters() if not value.requires_grad}
    optimizer = torch.optim.SGD([p for _, p in learning], lr=0.1)
    network(images).square().sum().backward()
    assert all(p.grad is not None for _, p in learning)
    optimizer.step()
    assert all(torch.equal(value, frozen[name]) for name, value in network.named_parameters() if name in frozen)
    with torch.no_grad():
        moved = network(images)
        assert not torch.allclose(moved, before(images), rtol=1e-2)
        merged = strategies.merge(Config(method=method, rank=4), network)
        assert torch.allclose(merged(images), moved, rtol=1e-4, atol=1e-4 * float(moved.abs().max()))
    assert set(merged.state_dict()) == set(before.state_dict())
    assert [type(m) for m in merged.modules()] == [type(m) for m in before.modules()]


def test_adapters_are_drawn_from_the_seed_alone() -> None:
    one, two = resnet(), resnet()
    grafted(one, "fc", Config())
    torch.randn(7)
    state = torch.get_rng_state()
    grafted(two, "fc", Config())
    assert torch.equal(state, torch.get_rng_state())
    assert all(torch.equal(a, b) for a, b in zip(one.state_dict().values(), two.state_dict().values(), strict=True))


def test_new_layers_and_named_parts_learn_in_full_beside_the_adapters() -> None:
    network = resnet()
    config = Config(targets=["layer4.*", "conv2"], train=["layer3.1"], rank=2)
    names = [name for name, _ in grafted(network, "fc", config, fresh=["conv1.weight"])]
    whole = [name for name in names if "lora_" not in name]
    assert {"conv1.weight", "fc.weight", "fc.bias", "layer3.1.conv1.weight", "layer3.1.bn2.bias"} <= set(whole)
    assert all(name.startswith(("conv1.", "fc.", "layer3.1.")) for name in whole)
    adapted = {name.split(".lora_")[0] for name in names if "lora_" in name}
    assert "layer4.0.downsample.0" in adapted
    assert "layer1.0.conv2" in adapted
    assert "layer1.0.conv1" not in adapted
    assert "layer3.1.conv2" not in adapted, "what learns in full needs no adapter"


@pytest.mark.parametrize(
    ("config", "said"),
    [
        (Config(targets=["layer4.0.conv3"]), "'layer4.0.conv3' is no linear layer or convolution of the network; did you mean"),
        (Config(targets=["layer4"]), r"'layer4' is not one layer; write 'layer4\.\*'"),
        (Config(targets=["fc"]), "'fc' is trained in full"),
        (Config(train=["layer5"]), "strategy.train: the network has no part 'layer5'; did you mean"),
        (Config(method="oft"), "no layer that oft could be put beside|no layer that oft goes beside"),
    ],
)
def test_what_cannot_be_adapted_is_refused(config: Config, said: str) -> None:
    with pytest.raises(UserError, match=said):
        grafted(resnet(), "fc", config)


def test_adapters_may_be_all_that_learns() -> None:
    network = vit()
    learning = grafted(network, "heads.head", Config(rank=2, head="keep"))
    assert learning
    assert all("lora_" in name for name, _ in learning)
    with pytest.raises(UserError, match=r"strategy\.head: keep, and 'heads\.head\.weight' is new and has to learn; write full"):
        grafted(vit(), "heads.head", Config(rank=2, head="keep"), ["heads.head.weight"])


def test_settings_without_meaning_are_refused() -> None:
    wrong: list[dict[str, Any]] = [{"method": "ia3", "alpha": 4}, {"method": "ia3", "dropout": 0.1}, {"targets": []}]
    for given in wrong:
        with pytest.raises(ValueError, match=r"leave it out|is empty"):
            Config.model_validate(given)
