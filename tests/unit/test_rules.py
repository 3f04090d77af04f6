"""Rows of heads and filters of channels, value by value, for each rule."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file
from torch import nn
from torchvision import models

from tests.trainers import NETWORK
from trainer.config import UserError
from trainer.config.adapt import Adapt
from trainer.config.run import Model
from trainer.models import Built, build_model
from trainer.models.channels import filters, normalisation
from trainer.spec import Output

OLD = ("cat", "dog", "bird", "ship")


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A ResNet-18 of four classes, with their names."""
    torch.manual_seed(5)
    path = tmp_path_factory.mktemp("weights") / "resnet.safetensors"
    state = models.resnet18(num_classes=4).state_dict()
    save_file({name: value.contiguous() for name, value in state.items()}, path, metadata={"classes": json.dumps(list(OLD))})
    return path


def built(path: Path, classes: tuple[str, ...], seed: int = 0, **adapt: Any) -> Built:
    config = Model(source="torchvision:resnet18", weights=str(path), adapt=Adapt(image_size=32, **adapt))
    return build_model(config, "imagenet", (Output("", classes),), seed)


def state(path: Path) -> dict[str, torch.Tensor]:
    from safetensors.torch import load_file

    tensors: dict[str, torch.Tensor] = load_file(path)
    return tensors


def test_rows_of_shared_classes_are_kept_and_new_ones_begin_as_was_asked(checkpoint: Path) -> None:
    old = state(checkpoint)
    new = ("ship", "plane", "cat", "wolf")
    for rule in ("random", "zero", "mean"):
        found = built(checkpoint, new, new_rows=rule, like={"wolf": "dog"}).network.state_dict()
        for part in ("fc.weight", "fc.bias"):
            assert torch.equal(found[part][0], old[part][3])
            assert torch.equal(found[part][2], old[part][0])
            assert torch.equal(found[part][3], old[part][1]), "like"
            plane = found[part][1]
            if rule == "zero":
                assert not plane.any()
            elif rule == "mean":
                assert torch.allclose(plane, old[part].mean(dim=0))
            else:
                assert not any(torch.equal(plane, row) for row in old[part])
                again = built(checkpoint, new, seed=1, new_rows=rule, like={"wolf": "dog"}).network.state_dict()
                assert not torch.equal(again[part][1], plane)


def test_a_class_may_have_another_name(checkpoint: Path) -> None:
    report = built(checkpoint, ("hund", "katze"), rename={"hund": "dog", "katze": "cat"})
    old = state(checkpoint)
    assert torch.equal(report.network.state_dict()["fc.weight"], old["fc.weight"][[1, 0]])
    assert any("2 of 2 classes kept" in line for line in report.report.adapted)


def test_rows_of_official_weights_are_kept_when_that_is_asked(monkeypatch: pytest.MonkeyPatch, checkpoint: Path) -> None:
    """Published weights, whose classes may bear a task's names by accident."""
    from dataclasses import replace

    from trainer.models import build

    origin = build.origin_of

    def official(config: Model) -> Any:
        found = origin(config)
        read = found.read
        assert read is not None
        return replace(found, read=lambda: replace(read(), official=True))

    monkeypatch.setattr(build, "origin_of", official)
    old = state(checkpoint)["fc.weight"]
    automatic = built(checkpoint, ("dog", "plane"))
    assert "fc.weight" in automatic.fresh
    kept = built(checkpoint, ("dog", "plane"), head="shared").network.state_dict()["fc.weight"]
    assert torch.equal(kept[0], old[1])


@pytest.mark.parametrize(
    ("classes", "adapt", "said"),
    [
        (("cat", "wolf"), {"like": {"wolf": "dgo"}}, "has no class 'dgo'; did you mean 'dog'"),
        (("cat", "wolf"), {"like": {"wlof": "dog"}}, "the task has no class 'wlof'; did you mean 'wolf'"),
        (("cat", "wolf"), {"rename": {"wolf": "hound"}}, "model.adapt.rename: .* has no class 'hound'"),
        (("a", "b"), {"head": "shared"}, "shares no class with the task"),
    ],
)
def test_names_that_are_not_there_are_refused(checkpoint: Path, classes: tuple[str, ...], adapt: Any, said: str) -> None:
    with pytest.raises(UserError, match=said):
        built(checkpoint, classes, **adapt)


def test_a_head_that_is_kept_for_its_number_alone_is_told(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    path = tmp_path / "nameless.safetensors"
    save_file({name: value.contiguous() for name, value in models.resnet18(num_classes=2).state_dict().items()}, path)
    kept = built(path, ("a", "b")).network.state_dict()["fc.weight"]
    assert torch.equal(kept, state(path)["fc.weight"])
    assert "does not name its 2 classes" in caplog.text
    caplog.clear()
    assert not torch.equal(built(path, ("a", "b"), head="new").network.state_dict()["fc.weight"], kept)
    assert not caplog.text


def test_names_that_repeat_are_refused(tmp_path: Path) -> None:
    path = tmp_path / "twice.safetensors"
    tensors = {name: value.contiguous() for name, value in models.resnet18(num_classes=3).state_dict().items()}
    save_file(tensors, path, metadata={"classes": json.dumps(["cat", "crane", "crane"])})
    with pytest.raises(UserError, match="has the class 'crane' more than once"):
        built(path, ("crane", "cat"), head="shared")


def test_channels_by_each_rule_for_convolutions(checkpoint: Path) -> None:
    old = state(checkpoint)["conv1.weight"]

    def stem(**adapt: Any) -> torch.Tensor:
        return built(checkpoint, OLD, **adapt).network.get_parameter("conv1.weight").detach()

    repeat = stem(in_channels=5)
    assert torch.allclose(repeat, old[:, [0, 1, 2, 0, 1]] * 3 / 5)
    zero = stem(in_channels=5, channels="zero")
    assert torch.equal(zero[:, :3], old)
    assert not zero[:, 3:].any()
    assert torch.equal(stem(in_channels=2, channels="zero"), old[:, :2])
    names = ["nir", "green", "blue", "height"]
    mapped = stem(in_channels=4, channels="map", channel_names=names, channel_map={"nir": "red"})
    assert torch.equal(mapped[:, :3], old)
    assert not mapped[:, 3].any()
    bgr = stem(channels="map", channel_names=["blue", "green", "red"])
    assert torch.equal(bgr, old.flip(1)), "also where the number stays"


def test_the_normalisation_follows_the_filters(checkpoint: Path) -> None:
    spec = built(
        checkpoint, OLD, in_channels=3, channels="map", channel_names=["blue", "nir", "depth"], channel_map={"nir": "red"}
    ).spec
    average = pytest.approx((0.485 + 0.456 + 0.406) / 3, abs=1e-6)
    assert spec.mean[:2] == (0.406, 0.485)
    assert spec.mean[2] == average
    assert normalisation((1.0, 2.0, 3.0), Adapt(in_channels=4, channels="zero")) == (1.0, 2.0, 3.0, 2.0)
    assert normalisation((1.0, 2.0, 3.0), Adapt(in_channels=1)) == (2.0,)


def test_patch_embeddings_and_networks_of_ones_own() -> None:
    torch.manual_seed(0)
    weight = torch.randn(6, 3, 4, 4)
    fitted, told = filters(weight, Adapt(in_channels=4, channels="zero"))
    assert told == "the first 3 of 3 input channels kept, 1 begin at zero"
    assert torch.equal(fitted[:, :3], weight)
    config = Model(
        source=f"python:{NETWORK}:small",
        adapt=Adapt(in_channels=2, image_size=8, channels="map", channel_names=["grey", "mask"]),
    )
    network = build_model(config, "half", (Output("", ("a", "b")),), 0).network
    layer = network.get_submodule("trunk.0")
    assert isinstance(layer, nn.Conv2d)
    assert layer.weight[:, 0].any()
    assert not layer.weight[:, 1].any()


@pytest.mark.parametrize(
    ("adapt", "said"),
    [
        ({"channels": "map", "channel_names": ["red"]}, "channel_names has 1 names for in_channels 3"),
        ({"channels": "map", "channel_names": ["a", "a", "b"]}, "a name twice"),
        ({"channels": "map", "channel_names": ["a", "b", "c"], "channel_map": {"d": "red"}}, "'d' is none of channel_names"),
        ({"channel_names": ["a", "b", "c"]}, "go with channels: map"),
        ({"head": "new", "like": {"a": "b"}}, "with head: new leave them out"),
        ({"like": {"a": "b"}, "rename": {"a": "b"}}, "stands in like and in rename"),
    ],
)
def test_settings_that_do_not_fit_are_refused(adapt: dict[str, Any], said: str) -> None:
    with pytest.raises(ValueError, match=said):
        Adapt.model_validate(adapt)


def test_channels_that_the_network_does_not_have_are_refused(checkpoint: Path) -> None:
    with pytest.raises(UserError, match="the network's channels are red, green, blue"):
        built(checkpoint, OLD, channels="map", channel_names=["a", "b", "c"], channel_map={"a": "nir"})
    with pytest.raises(UserError, match="all filters would be zero"):
        built(checkpoint, OLD, channels="map", channel_names=["a", "b", "c"])
