"""Where networks of many kinds are cut, and that the rest of them gives to the bit what the whole gives."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from dataclasses import replace
from functools import partial
from typing import Any

import pytest
import torch
from torch import nn
from torch.nn import functional

from trainer import strategies
from trainer.config.strategies import lora
from trainer.features.cut import Cut, Prefix, Tail
from trainer.features.search import Found, Search
from trainer.spec import InputSpec

Autocast = Callable[[], AbstractContextManager[Any]]
CPU = torch.device("cpu")


def look(network: nn.Module, learns: list[str], size: int = 32, *, least: float = 0.0, autocast: Autocast = nullcontext) -> Found:
    """Search with these parts of the network learning."""
    for name, parameter in network.named_parameters():
        parameter.requires_grad_(any(name == part or name.startswith(f"{part}.") for part in learns))
    learning = [p for p in network.parameters() if p.requires_grad]
    spec = InputSpec(3, size, (0.5,) * 3, (0.5,) * 3)
    before = {name: value.clone() for name, value in network.state_dict().items()}
    state = torch.get_rng_state()
    found = Search(network, learning, spec, strategies.train_mode, autocast, CPU).find(least)
    assert torch.equal(torch.get_rng_state(), state), "the training's random numbers stay its own"
    assert all(torch.equal(value, before[name]) for name, value in network.state_dict().items())
    assert [p for p in network.parameters() if p.requires_grad] == learning
    assert not any("forward" in vars(module) for module in network.modules())
    return found


def cut_of(network: nn.Module, learns: list[str], size: int = 32) -> Cut:
    """The cut that is found, which there must be."""
    found = look(network, learns, size)
    assert found.cut is not None, found.why
    return found.cut


def holds(network: nn.Module, cut: Cut, size: int = 32, autocast: Autocast = nullcontext) -> None:
    """On images of its own, with other batch sizes than the search: the same logits, gradients and random numbers."""
    images = torch.randn(5, 3, size, size, generator=torch.Generator().manual_seed(7))
    for training in (True, False):
        results = []
        for cached in (False, True):
            if training:
                strategies.train_mode(network)
            else:
                network.eval()
            buffers = {name: value.clone() for name, value in network.named_buffers()}
            with torch.no_grad(), autocast():
                features = Prefix(network, cut)(images)
            assert features.shape == (5, *cut.shape)
            assert features.dtype == cut.dtype
            tail = Tail(network, cut) if cached else None
            torch.manual_seed(3)
            with autocast():
                output = network(images) if tail is None else tail(features)
            main = output[0] if isinstance(output, tuple) else output
            network.zero_grad()
            sum(leaf.float().square().sum() for leaf in (output if isinstance(output, tuple) else [output])).backward()
            gradients = {n: p.grad.clone() for n, p in network.named_parameters() if p.grad is not None}
            results.append((main.detach(), gradients, torch.get_rng_state()))
            for name, value in network.named_buffers():
                value.copy_(buffers[name])
            if tail is not None:
                tail.release()
        (a, ga, sa), (b, gb, sb) = results
        assert torch.equal(a, b)
        assert ga.keys() == gb.keys()
        assert all(torch.equal(ga[name], gb[name]) for name in ga)
        assert torch.equal(sa, sb)


def torchvision(name: str, **keys: Any) -> nn.Module:
    import torchvision

    network: nn.Module = torchvision.models.get_model(name, weights=None, num_classes=5, **keys)
    return network


def small_vit() -> nn.Module:
    from torchvision.models import VisionTransformer

    network: nn.Module = VisionTransformer(32, 8, 3, 2, 16, 32, num_classes=5)
    return network


def timm(name: str, **keys: Any) -> nn.Module:
    import timm

    network: nn.Module = timm.create_model(name, num_classes=5, **keys)
    return network


def transformers_vit() -> nn.Module:
    from transformers import ViTConfig, ViTForImageClassification

    from trainer.models.transformers import logits_only

    config = ViTConfig(
        hidden_size=16,
        num_hidden_layers=3,
        num_attention_heads=2,
        intermediate_size=32,
        image_size=32,
        patch_size=8,
        num_labels=5,
    )
    return logits_only(ViTForImageClassification(config))


KNOWN: dict[str, tuple[Callable[[], nn.Module], list[str], str, str | None]] = {
    # network, what learns, where it is cut, the module that is all that runs then
    "resnet18 head": (partial(torchvision, "resnet18"), ["fc"], "fc", "fc"),
    "resnet18 last unit": (partial(torchvision, "resnet18"), ["fc", "layer4.1"], "layer4.1", None),
    "resnet18 stage": (partial(torchvision, "resnet18"), ["fc", "layer4"], "layer4.0", None),
    "vgg11 head": (partial(torchvision, "vgg11", init_weights=False), ["classifier.6"], "classifier.2", None),
    "mobilenet head": (partial(torchvision, "mobilenet_v3_small"), ["classifier"], "classifier.0", "classifier"),
    "densenet head": (partial(torchvision, "densenet121"), ["classifier"], "classifier", "classifier"),
    "torchvision vit head": (small_vit, ["heads"], "heads.head", "heads"),
    "torchvision vit block": (small_vit, ["heads", "encoder.layers.encoder_layer_2"], "encoder.layers.encoder_layer_2", None),
    "timm vit head": (partial(timm, "vit_tiny_patch16_224", img_size=32, depth=3), ["head"], "head", "head"),
    "timm vit block": (
        partial(timm, "vit_tiny_patch16_224", img_size=32, depth=3), ["head", "norm", "blocks.2"], "blocks.2", None
    ),
    "timm eva (rotary positions)": (
        partial(timm, "eva02_tiny_patch14_224", img_size=28, depth=3), ["head", "fc_norm", "blocks.2"], "blocks.2", None
    ),
    "transformers vit head": (transformers_vit, ["classifier"], "classifier", "classifier"),
    "transformers vit layer": (
        transformers_vit, ["classifier", "vit.layernorm", "vit.layers.2"], "vit.layers.2", None
    ),
}  # fmt: skip


@pytest.mark.parametrize("case", KNOWN)
def test_known_networks(case: str) -> None:
    make, learns, module, whole = KNOWN[case]
    torch.manual_seed(0)
    network = make()
    size = 28 if "eva" in case else 32
    cut = cut_of(network, learns, size)
    assert (cut.module, cut.whole) == (module, whole)
    assert 0.3 < cut.share <= 1
    holds(network, cut, size)


@pytest.mark.parametrize("make", [partial(torchvision, "resnet18"), small_vit], ids=["meta", "position tables"])
def test_nothing_before_the_cut_is_worked_out(make: Callable[[], nn.Module]) -> None:
    network = make()
    cut = cut_of(network, ["fc", "layer4", "encoder.layers.encoder_layer_2", "heads"])
    ran: list[str] = []
    for name in cut.before:
        module = network.get_submodule(name)
        if next(module.children(), None) is None and name not in cut.skipped:
            module.register_forward_hook(lambda module, args, output, name=name: ran.append(name))
        elif name in cut.skipped:
            module.forward = lambda *args, name=name: ran.append(name)
    Tail(network, cut)(torch.zeros(2, *cut.shape))
    assert cut.before
    assert ran == []


class Skip(nn.Module):
    """The last layer sees what the first one gave, past what learns in between."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.stem = nn.Conv2d(3, 4, 3, padding=1), nn.Conv2d(4, 4, 3, padding=1)
        self.middle, self.mixed = nn.Conv2d(4, 4, 3, padding=1), nn.Conv2d(4, 4, 1)
        self.head = nn.Linear(8, 5)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = self.stem(self.first(x))
        y = torch.relu(self.middle(x))
        both = torch.cat([self.mixed(y), x], dim=1)
        logits: torch.Tensor = self.head(both.mean(dim=(2, 3)))
        return logits


def test_a_connection_across_the_cut_moves_it_to_where_it_begins() -> None:
    network = Skip()
    cut = cut_of(network, ["mixed", "head"])
    assert cut.module == "stem", "middle and mixed are deeper, but the head needs what the stem gave as well"
    holds(network, cut)
    network = Skip()
    cut = cut_of(network, ["head"])
    assert cut.module == "head"


class Taps(nn.Module):
    """A head that looks at the map before it is pooled, through a hook on the module that takes it."""

    def __init__(self) -> None:
        super().__init__()
        self.trunk = nn.Sequential(nn.Conv2d(3, 8, 3, padding=1), nn.ReLU())
        self.pool = nn.AdaptiveAvgPool2d(1)
        self.query, self.key, self.head = nn.Linear(8, 8), nn.Linear(8, 8), nn.Linear(8, 5)
        self.pool.register_forward_pre_hook(self._keep)

    def _keep(self, _module: nn.Module, args: tuple[torch.Tensor]) -> None:
        self.map = args[0]

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        pooled = self.pool(self.trunk(x)).flatten(1)
        tokens = self.map.flatten(2).transpose(1, 2)
        weights = (self.key(tokens) @ self.query(pooled)[:, :, None]).softmax(dim=1)
        logits: torch.Tensor = self.head((weights * tokens).sum(dim=1))
        return logits


def test_a_head_that_taps_the_map_is_cut_before_the_pooling() -> None:
    network = Taps()
    found = look(network, ["query", "key", "head"])
    assert found.cut is not None
    assert (found.cut.module, found.cut.shape) == ("pool", (8, 32, 32))
    holds(network, found.cut)


class Auxiliary(nn.Module):
    """A second head in the middle, in training."""

    def __init__(self) -> None:
        super().__init__()
        self.one, self.two, self.three = (nn.Conv2d(3 if i == 0 else 4, 4, 3, padding=1) for i in range(3))
        self.aux, self.head = nn.Linear(4, 5), nn.Linear(4, 5)

    def forward(self, x: torch.Tensor) -> Any:
        x = torch.relu(self.two(self.one(x)))
        aux = self.aux(x.mean(dim=(2, 3))) if self.training else None
        y = self.head(self.three(x).mean(dim=(2, 3)))
        return (y, aux) if self.training else y


def test_an_auxiliary_head_that_learns_moves_the_cut_before_it() -> None:
    network = Auxiliary()
    cut = cut_of(network, ["aux", "head"])
    assert cut.module == "two", "the place where both heads begin is the input of no module"
    holds(network, cut)


def trunk(*layers: nn.Module) -> nn.Sequential:
    return nn.Sequential(*layers, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(4, 5))


def test_what_draws_or_looks_at_the_batch_is_not_passed_over() -> None:
    network = trunk(nn.Conv2d(3, 4, 3), nn.Dropout(0.1), nn.Conv2d(4, 4, 3))
    found = look(network, ["5"])
    assert found.cut is not None
    assert (found.cut.module, found.why) == ("1", "'1' draws random numbers in training")
    holds(network, found.cut)
    network = trunk(nn.Conv2d(3, 4, 3), nn.Dropout(0.0), nn.Conv2d(4, 4, 3))
    cut = cut_of(network, ["5"])
    assert cut.module == "5"
    # statistics of the batch itself, in evaluation too: what one image gives depends on the others
    network = trunk(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4, track_running_stats=False), nn.ReLU(), nn.Conv2d(4, 4, 3))
    cut = cut_of(network, ["6"])
    assert cut.module == "1"
    assert "'1' gives something else in training than in evaluation" in look(network, ["6"]).why


class Noise(nn.Module):
    """Draws in its own forward, without a module for it."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.second, self.head = nn.Conv2d(3, 4, 3), nn.Conv2d(4, 4, 3), nn.Linear(4, 5)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = functional.dropout(self.first(x), 0.2, self.training)
        y: torch.Tensor = self.head(self.second(x).mean(dim=(2, 3)))
        return y


class Scaled(nn.Module):
    """A parameter of the network's own, used between modules."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.second, self.head = nn.Conv2d(3, 4, 3), nn.Conv2d(4, 4, 3), nn.Linear(4, 5)
        self.scale = nn.Parameter(torch.ones(4, 1, 1))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        y: torch.Tensor = self.head(self.second(self.first(x) * self.scale).mean(dim=(2, 3)))
        return y


def test_what_happens_between_modules_is_seen() -> None:
    assert "the network itself draws random numbers" in look(Noise(), ["head"]).why
    found = look(Scaled(), ["head", "scale"])
    assert found.cut is None or found.cut.module == "first"
    assert "the network itself learns" in found.why
    network = Scaled()
    cut = cut_of(network, ["head"])
    assert cut.module == "head"
    holds(network, cut)


def test_nothing_before_it() -> None:
    assert look(trunk(nn.Conv2d(3, 4, 3)), ["0", "3"]).cut is None
    found = look(torchvision("resnet18"), ["bn1", "fc"], least=0.01)
    assert found.cut is None
    assert found.why == "'bn1' learns, and only 0.08% of the parameters comes before it"


@pytest.mark.parametrize("learns", [["head"], ["head", "units.2"]])
def test_what_arrives_in_mixed_precision_is_what_is_kept(learns: list[str]) -> None:
    from tests.network import deep

    network = deep(norm=False)
    network.stem = nn.Conv2d(3, 8, 3, padding=1)
    autocast = partial(torch.autocast, "cpu", torch.bfloat16)
    found = look(network, learns, autocast=autocast)
    assert found.cut is not None
    assert found.cut.dtype == torch.bfloat16
    holds(network, found.cut, autocast=autocast)


def test_adapters_in_late_layers() -> None:
    network = timm("vit_tiny_patch16_224", img_size=32, depth=3)
    config = lora.Config(targets=["blocks.2.mlp.fc1"], rank=2, dropout=0.1)
    strategies.inject(config, network, ["head"], [], 0)
    strategies.apply(config, network, ["head"], [], lambda amount: 0)
    learns = [name for name, p in network.named_parameters() if p.requires_grad]
    found = look(network, learns)
    assert found.cut is not None
    # the attention of that block comes before the adapter; but it is added to what the block was given
    assert found.cut.module == "blocks.2"
    holds(network, found.cut)


def test_a_cut_that_is_not_reached_is_an_error_and_not_a_guess() -> None:
    network = Auxiliary()
    found = look(network, ["head"])
    assert found.cut is not None
    tail = Tail(network, replace(found.cut, whole=None))
    network.forward = lambda x: torch.zeros(2, 5)  # type: ignore[method-assign]
    with pytest.raises(RuntimeError, match=f"the features did not reach '{found.cut.module}'"):
        tail(torch.zeros(2, *found.cut.shape))
