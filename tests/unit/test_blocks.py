"""The order of the blocks of real architectures, and the rates that follow from it."""

from __future__ import annotations

import pytest
import timm
import torch
from torch import nn
from torchvision import models

from trainer import strategies
from trainer.config import UserError
from trainer.config.amounts import Amount
from trainer.config.strategies import biases, blocks, full, gradual, head, norms, probe
from trainer.strategies.blocks_of import blocks_of


def made(name: str) -> tuple[nn.Module, list[str]]:
    """A network without values, and the names of its output layers."""
    library, _, architecture = name.partition(":")
    with torch.device("meta"):
        if library == "timm":
            network: nn.Module = timm.create_model(architecture)
            output = network.get_classifier()  # type: ignore[operator]
            return network, [n for n, m in network.named_modules() if m is output]
        network = models.get_model(architecture)
    return network, [n for n, m in network.named_modules() if isinstance(m, nn.Linear)][-1:]


@pytest.mark.parametrize(
    ("name", "count", "first", "last"),
    [
        ("torchvision:resnet18", 9, "conv1", "layer4.1"),
        ("torchvision:resnet50", 17, "conv1", "layer4.2"),
        ("torchvision:vgg16_bn", 15, "features.0", "classifier.3"),
        ("torchvision:alexnet", 7, "features.0", "classifier.4"),
        ("torchvision:vit_b_16", 13, "conv_proj", "encoder.layers.encoder_layer_11"),
        ("torchvision:swin_t", 16, "features.0", "features.7.1"),
        ("torchvision:convnext_tiny", 22, "features.0", "features.7.2"),
        ("torchvision:efficientnet_b0", 18, "features.0", "features.8"),
        ("torchvision:mobilenet_v2", 19, "features.0", "features.18"),
        ("torchvision:densenet121", 62, "features.conv0", "features.denseblock4.denselayer16"),
        ("timm:resnet50", 17, "conv1", "layer4.2"),
        ("timm:vit_tiny_patch16_224", 13, "patch_embed", "blocks.11"),
        ("timm:swin_tiny_patch4_window7_224", 16, "patch_embed", "layers.3.blocks.1"),
        ("timm:convnext_tiny", 22, "stem", "stages.3.blocks.2"),
        ("timm:efficientnet_b0", 18, "conv_stem", "conv_head"),
        ("timm:mixer_b16_224", 13, "stem", "blocks.11"),
        ("timm:beit_base_patch16_224", 13, "patch_embed", "blocks.11"),
        ("timm:pvt_v2_b0", 12, "patch_embed", "stages.3.blocks.1"),
        ("timm:cait_xxs24_224", 27, "patch_embed", "blocks_token_only.1"),
        ("timm:regnety_002", 5, "stem", "s4"),
    ],
)
def test_blocks_stand_in_the_order_of_the_network(name: str, count: int, first: str, last: str) -> None:
    network, outputs = made(name)
    found = blocks_of(network, outputs)
    assert (len(found), found[0].name, found[-1].name) == (count, first, last)
    inside = [name for block in found for name in block.parameters]
    assert len(inside) == len(set(inside))
    trunk = {n for n, _ in network.named_parameters() if not any(n.startswith(f"{output}.") for output in outputs)}
    assert set(inside) == trunk, "every parameter of the trunk is in one block"


def test_tables_belong_to_the_stem_and_the_last_norm_to_the_last_block() -> None:
    network, outputs = made("timm:vit_tiny_patch16_224")
    found = blocks_of(network, outputs)
    assert {"cls_token", "pos_embed"} <= set(found[0].parameters)
    assert "norm.weight" in found[-1].parameters


def resnet() -> nn.Module:
    with torch.device("meta"):
        network: nn.Module = models.resnet18()
    return network


def samples(amount: Amount | float) -> int:
    return round(amount * 1000) if isinstance(amount, float) else amount.samples(epoch_samples=100, step_samples=10)


def rates(config: strategies.Strategy, network: nn.Module) -> dict[str, tuple[float, int]]:
    groups = strategies.apply(config, network, ["fc"], ["fc.weight", "fc.bias"], samples)
    assert [(g.start, -g.rate) for g in groups] == sorted((g.start, -g.rate) for g in groups)
    return {name: (group.rate, group.start) for group in groups for name, _ in group.parameters}


def test_layer_decay_counts_from_the_head() -> None:
    found = rates(full.Config(layer_decay=0.5), resnet())
    expected = {"fc.weight": 0, "layer4.1.conv2.weight": 1, "layer4.0.conv1.weight": 2, "layer1.0.bn1.bias": 8, "conv1.weight": 9}
    assert {name: found[name] for name in expected} == {name: (0.5**power, 0) for name, power in expected.items()}
    assert found["bn1.weight"] == found["conv1.weight"]


def test_parts_have_rates_of_their_own_and_the_longest_counts() -> None:
    config = full.Config(layer_decay=0.5, rates={"layer4": 0.1, "layer4.1.conv2": 3.0, "stem": 0, "*.bn1": 0.5, "head": 2.0})
    found = rates(config, resnet())
    assert found["layer4.0.conv1.weight"][0] == pytest.approx(0.25 * 0.1)
    assert found["layer4.1.conv2.weight"][0] == pytest.approx(0.5 * 3)
    assert found["layer1.0.bn1.bias"][0] == pytest.approx(0.5**8 * 0.5)
    assert found["fc.bias"][0] == 2.0
    assert "conv1.weight" not in found
    assert "bn1.weight" not in found


def test_last_blocks_and_their_limit() -> None:
    assert {n.split(".conv")[0] for n in rates(blocks.Config(last=2), resnet()) if "conv" in n} == {"layer4.0", "layer4.1"}
    with pytest.raises(UserError, match=r"strategy.last is 10, and the trunk has 9 blocks: conv1, layer1.0, layer1.1, …"):
        rates(blocks.Config(last=10), resnet())


def test_gradual_and_probe_start_when_they_say() -> None:
    found = rates(gradual.Config.model_validate({"kind": "gradual", "every": "2 epochs", "blocks": 2, "limit": 4}), resnet())
    starts = [found[f"{name}.weight"][1] for name in ("fc", "layer4.1.conv1", "layer4.0.conv1", "layer3.0.conv1")]
    assert starts == [0, 200, 200, 400]
    assert "layer2.1.conv1.weight" not in found
    found = rates(probe.Config(probe=0.25, rate=0.1), resnet())
    assert (found["fc.weight"], found["conv1.weight"]) == ((1.0, 0), (0.1, 250))


def test_norms_and_biases() -> None:
    found = rates(norms.Config(), resnet())
    assert all(".bn" in f".{name}" or ".downsample.1" in name or name.startswith("fc.") for name in found)
    assert {"bn1.weight", "layer2.0.downsample.1.bias", "fc.weight"} <= set(found)
    network, outputs = made("timm:vit_tiny_patch16_224")
    groups = strategies.apply(biases.Config(), network, outputs, [], samples)
    names = [name for group in groups for name, _ in group.parameters]
    assert {n for n in names if not n.endswith("bias")} == {"head.weight"}
    assert "blocks.0.attn.qkv.bias" in names


@pytest.mark.parametrize(
    ("config", "said"),
    [
        (full.Config(rates={"layr4": 0.1}), "no part 'layr4'; did you mean 'layer4'"),
        (head.Config(rates={"layer4": 0.1}), "'layer4' is frozen by the strategy"),
        (head.Config(rates={"fc": 0}), "leaves nothing that learns"),
        (probe.Config(rates={"head": 0}), "its rates freeze the head"),
    ],
)
def test_what_matches_nothing_is_refused(config: strategies.Strategy, said: str) -> None:
    with pytest.raises(UserError, match=said):
        rates(config, resnet())


def test_norms_and_biases_that_are_not_there_are_refused() -> None:
    plain = nn.Sequential(nn.Linear(2, 2, bias=False), nn.ReLU(), nn.Linear(2, 2))
    with pytest.raises(UserError, match="no normalisation layer"):
        strategies.apply(norms.Config(), plain, ["2"], [], samples)
    with pytest.raises(UserError, match="no layer of the trunk has a bias"):
        strategies.apply(biases.Config(), plain, ["2"], [], samples)
