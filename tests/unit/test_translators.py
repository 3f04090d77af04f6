"""Networks that make pictures of pictures: trunks with a decoder, networks of one's own, UNets; and how near they come."""

from __future__ import annotations

import inspect
import shutil
from pathlib import Path
from typing import Any

import diffusers
import numpy as np
import pytest
import torch
from safetensors.torch import save_file
from torch import nn
from torch.nn.modules.module import register_module_forward_pre_hook
from torchvision import models

from tests import painter
from tests.trainers import RUN
from tests.unit.test_generators import UNET, VAE
from tests.unit.test_texts import text_pipeline
from trainer.config import Run, UserError
from trainer.config.adapt import Adapt
from trainer.config.model import Model
from trainer.config.pictures import Perceptual as PerceptualConfig
from trainer.config.strategies import head as head_strategy
from trainer.export.translator import write
from trainer.models import Built, build_model
from trainer.perceptual import Perceptual
from trainer.spec import Translator
from trainer.strategies import apply
from trainer.tasks.likening import figures

OWN = Path(painter.__file__)
CPU = torch.device("cpu")
VQ = inspect.signature(diffusers.VQModel.__init__).parameters


def built(
    source: str, size: int = 32, *, channels: int = 3, made: int = 3, weights: str | None = None,
    residual: bool | None = None, alike: bool = False, **args: Any,
) -> Built:  # fmt: skip
    given = {} if weights is None else {"weights": weights}
    config = Model(source=source, args=args, adapt=Adapt(in_channels=channels, image_size=size), **given)
    return build_model(config, "auto", Translator(made, 8, residual, alike), 0)


def test_a_classifier_becomes_an_encoder_with_its_weights(tmp_path: Path) -> None:
    torch.manual_seed(3)
    whole = models.resnet18(num_classes=4)
    save_file({name: value.contiguous() for name, value in whole.state_dict().items()}, tmp_path / "w.safetensors")
    found = built("torchvision:resnet18", channels=1, weights=str(tmp_path / "w.safetensors"))
    network: Any = found.network
    assert network.levels == ("relu", "layer1", "layer2", "layer3")  # at 32 pixels layer4 has one position
    assert found.head == ("decoder",)
    assert torch.equal(network.trunk.layer2[0].conv1.weight, whole.layer2[0].conv1.weight)
    assert torch.allclose(network.trunk.conv1.weight, whole.conv1.weight.sum(dim=1, keepdim=True), atol=1e-6)
    assert not any(name.startswith(("trunk.fc", "trunk.layer4")) for name in network.state_dict())
    image = torch.randn(2, 1, 32, 32)
    made = network(image)
    assert made.shape == (2, 3, 32, 32)
    made.sum().backward()
    assert all(parameter.grad is not None for parameter in network.parameters()), "nothing is left that would not learn"
    groups = apply(head_strategy.Config(), network, found.head, found.fresh, lambda amount: 0)
    assert {name.partition(".")[0] for group in groups for name, _ in group.parameters} == {"decoder"}


@pytest.mark.parametrize(("channels", "made"), [(3, 3), (1, 3), (3, 1)])
def test_the_output_is_added_to_the_input(channels: int, made: int) -> None:
    """A new decoder begins with the input itself, of whatever channels and normalisation, and all of it learns from there."""
    found = built("torchvision:resnet18", channels=channels, made=made, alike=True)
    assert found.head == ("network.decoder",)
    assert all(name in dict(found.network.named_parameters()) for name in found.fresh)
    pixels = torch.rand(2, channels, 32, 32)
    mean, std = (torch.tensor(values)[:, None, None] for values in (found.spec.mean, found.spec.std))
    grey = (pixels * torch.tensor([0.299, 0.587, 0.114])[:, None, None]).sum(dim=1, keepdim=True) if channels > made else pixels
    output = found.network((pixels - mean) / std)
    assert torch.allclose(output, (grey * 2 - 1).expand(-1, made, -1, -1), atol=1e-5)
    torch.autograd.backward((output - torch.rand_like(output)).square().sum())
    last = found.network.get_parameter("network.decoder.out.weight")
    assert last.grad is not None
    assert float(last.grad.abs().max()) > 0
    assert type(built("torchvision:resnet18", alike=True, residual=False).network).__name__ == "Translating"
    assert type(built("torchvision:resnet18").network).__name__ == "Translating", "nor for pairs that are not alike"


@pytest.mark.parametrize("source", ["torchvision:vgg11_bn", "torchvision:mobilenet_v3_small", "timm:regnety_002"])
def test_trunks_of_the_field(source: str) -> None:
    network = built(source, 64).network.eval()
    image = torch.randn(1, 3, 64, 64, requires_grad=True)
    network(image).square().sum().backward()
    assert all(parameter.grad is not None for parameter in network.parameters())


def test_networks_of_ones_own(tmp_path: Path) -> None:
    found = built(f"python:{OWN}:painter", 16, channels=1)
    assert found.head == ("up",)
    assert found.network(torch.zeros(1, 1, 16, 16)).shape == (1, 3, 16, 16)
    torch.manual_seed(1)
    other = painter.painter()
    save_file(other.state_dict(), tmp_path / "p.safetensors")
    filled = built(f"python:{OWN}:painter", 16, channels=1, weights=str(tmp_path / "p.safetensors"))
    assert torch.equal(filled.network.state_dict()["up.weight"], other.state_dict()["up.weight"])
    sides = set()
    hook = register_module_forward_pre_hook(lambda _, given: sides.add(given[0].shape[-1]) if given[0].shape[1] == 3 else None)
    trunk: Any = built(f"python:{OWN}:trunk", 16).network
    hook.remove()
    assert trunk.levels == ("3", "5")
    assert sides == {16}, "for a classifier no size is looked for that would give pictures"
    small: dict[str, Any] = {
        "block_out_channels": [8, 8], "norm_num_groups": 4, "layers_per_block": 1,
        "down_block_types": ["DownBlock2D", "DownBlock2D"], "up_block_types": ["UpBlock2D", "UpBlock2D"],
    }  # fmt: skip
    unet = built("diffusers:UNet2DModel", 16, alike=True, **small)
    assert unet.network(torch.zeros(1, 3, 16, 16)).shape == (1, 3, 16, 16)
    assert unet.head == ("network.conv_out", "network.conv_norm_out")
    image = torch.rand(1, 3, 16, 16)
    assert torch.allclose(built("diffusers:UNet2DModel", 16, residual=True, **small).network(image), image, atol=1e-5)


@pytest.mark.parametrize(
    ("source", "size", "more", "message"),
    [
        (f"python:{OWN}:painter", 15, {"channels": 1}, "the nearest sizes that it does are 14 and 16"),
        (f"python:{OWN}:painter", 16, {"channels": 1, "residual": True}, "add the input to the output in its own file"),
        (f"python:{OWN}:painter", 16, {"channels": 1, "made": 1}, r"it makes \[2, 3, 16, 16\]"),
        ("torchvision:vit_b_16", 32, {}, "only maps of one size"),
        ("torchvision:vit_b_16", 40, {}, "write 32 or 48"),
        ("diffusers:UNet2DModel", 16, {"channels": 1}, "write model.adapt.in_channels: 3"),
    ],
)  # fmt: skip
def test_what_makes_no_pictures_is_refused(source: str, size: int, more: dict[str, Any], message: str) -> None:
    with pytest.raises(UserError, match=message):
        built(source, size, **more)


def test_generators_of_other_things_are_refused(tmp_path: Path) -> None:
    """In words of this task: it is told no text and has no autoencoder, so that it can be told to take none."""
    with pytest.raises(UserError, match="is told a text, and pictures are made of pictures alone; name a UNet2DModel"):
        built(text_pipeline(tmp_path / "text"), 8, channels=1, made=1)
    torch.manual_seed(0)
    diffusers.LDMPipeline(
        diffusers.VQModel(**{name: value for name, value in VAE.items() if name in VQ}),
        diffusers.UNet2DModel(in_channels=2, out_channels=2, sample_size=4, **UNET),
        diffusers.DDIMScheduler(),
    ).save_pretrained(tmp_path / "latent")
    latent = f"diffusers:{tmp_path / 'latent'}"
    with pytest.raises(UserError, match=r"was trained on the latents of .*latent#vqvae, and pictures are made of pixels"):
        built(latent, 8, channels=1, made=1)
    assert built(latent, 8, channels=1, made=1, weights="none").network(torch.zeros(1, 1, 8, 8)).shape == (1, 1, 8, 8)


def test_psnr_and_ssim_are_those_of_their_papers() -> None:
    draw = np.random.default_rng(0)
    target = draw.integers(0, 256, (3, 24, 24)).astype(np.uint8)
    made = np.clip(target.astype(int) + draw.integers(-40, 41, target.shape), 0, 255).astype(np.uint8)
    both = torch.from_numpy(np.stack([made, target])), torch.from_numpy(np.stack([target, target]))
    (psnr, ssim, mae), exact = figures(*both).tolist()
    square = float(((made / 255 - target / 255) ** 2).mean())
    assert psnr == pytest.approx(-10 * np.log10(square), abs=1e-9)
    assert mae == pytest.approx(float(np.abs(made / 255.0 - target / 255.0).mean()), abs=1e-12)
    assert exact == [100, pytest.approx(1), 0]
    bell = np.exp(-0.5 * ((np.arange(11) - 5) / 1.5) ** 2)
    window = np.outer(bell, bell) / np.outer(bell, bell).sum()
    found = []
    for one, other in zip(made / 255.0, target / 255.0, strict=True):
        for y in range(14):
            for x in range(14):
                a, b = one[y : y + 11, x : x + 11], other[y : y + 11, x : x + 11]
                ma, mb = (window * a).sum(), (window * b).sum()
                va, vb = (window * a * a).sum() - ma**2, (window * b * b).sum() - mb**2
                covariance = (window * a * b).sum() - ma * mb
                found.append((2 * ma * mb + 1e-4) * (2 * covariance + 9e-4) / ((ma**2 + mb**2 + 1e-4) * (va + vb + 9e-4)))
    assert ssim == pytest.approx(float(np.mean(found)), abs=1e-6)


def test_the_distance_of_features(tmp_path: Path) -> None:
    torch.manual_seed(0)
    save_file(painter.trunk().state_dict(), tmp_path / "t.safetensors")
    model = Model(source=f"python:{OWN}:trunk", weights=str(tmp_path / "t.safetensors"), adapt=Adapt(image_size=16))
    distance = Perceptual(PerceptualConfig(features=model), 3, CPU)
    made = torch.rand(4, 3, 16, 16).mul(2).sub(1).requires_grad_()
    target = made.detach().clone()
    target[1:] = target[1:].flip(3)
    found = distance(made, target)
    assert float(found[0].detach()) < 1e-10 < float(found[1:].detach().min())
    torch.autograd.backward(found.sum())
    assert made.grad is not None
    assert float(made.grad[1].abs().max()) > 0
    assert not any(parameter.requires_grad for parameter in distance.network.parameters())
    named = Perceptual(PerceptualConfig(features=model, layers=["0"]), 3, CPU)
    mean, std = (torch.tensor(v)[:, None, None] for v in ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225)))
    first = distance.network.get_submodule("0")
    one, other = (nn.functional.normalize(first(((x + 1) / 2 - mean) / std), dim=1) for x in (made, target))
    assert torch.allclose(named(made, target), (one - other).square().sum(dim=1).mean(dim=(1, 2)), atol=1e-5)
    with pytest.raises(UserError, match="has no layer 'nine'"):
        Perceptual(PerceptualConfig(features=model, layers=["nine"]), 3, CPU)


@pytest.mark.parametrize("name", ["predict", "sample", "translate", "own"])
def test_a_file_of_ones_own_stands_beside_the_program_of_an_export(name: str, tmp_path: Path) -> None:
    """Whatever its name is."""
    shutil.copyfile(OWN, tmp_path / f"{name}.py")
    source, out = f"python:{tmp_path}/{name}.py:painter", tmp_path / "export"
    out.mkdir()
    found = built(source, 16, channels=1)
    run = Run.model_validate(RUN | {"model": {"source": source, "adapt": {"in_channels": 1, "image_size": 16}}})
    code = write(out, run, found.network.eval(), found.spec, {})
    assert (out / "translate.py").read_text() == code
    assert (out / ("own.py" if name == "own" else f"{name}_network.py")).read_text() == OWN.read_text()
