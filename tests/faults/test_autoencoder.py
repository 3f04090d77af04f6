"""The task autoencoder: killed, started again, the same end; on any number of ranks the same; its export in plain diffusers."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import diffusers
import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import load_file, save_file

from tests.painter import photographs
from tests.trainers import Zygote, points, run_file, same
from tests.unit.test_generators import latent_pipeline
from trainer import sheet
from trainer.commands import main
from trainer.config import Run, UserError
from trainer.config.adapt import Adapt
from trainer.config.model import Model
from trainer.models import build_model
from trainer.models.autoencoder import Codec
from trainer.rundir import RunDir
from trainer.spec import Reconstructor
from trainer.tasks.autoencoder import Autoencode, Coded

KILLED = -9
NAME = "network.decoder.conv_out.weight"
VAE: dict[str, Any] = {
    "block_out_channels": [8, 8], "norm_num_groups": 4, "latent_channels": 2,
    "down_block_types": ["DownEncoderBlock2D"] * 2, "up_block_types": ["UpDecoderBlock2D"] * 2,
}  # fmt: skip


@pytest.fixture(scope="module")
def pictures(tmp_path_factory: pytest.TempPathFactory, zygote: Zygote) -> Path:
    zygote.preload("diffusers.models.autoencoders.autoencoder_kl")
    folder = tmp_path_factory.mktemp("pictures")
    photographs(folder / "train", 40, 0)
    photographs(folder / "val", 13, 1)
    return folder


def file(folder: Path, pictures: Path, **sections: Any) -> Path:
    """A run file of a tiny autoencoder against a critic."""
    path = run_file(folder)
    run = json.loads(path.read_text())
    run["model"] = {"source": "diffusers:AutoencoderKL", "args": VAE, "adapt": {"image_size": 16}}
    run["task"] = {
        "kind": "autoencoder", "losses": ["l1", "kl", "adversarial"], "adversary": {"width": 8, "layers": 2},
        "samples": {"count": 3},
    }  # fmt: skip
    run["losses"] = {"weights": {"kl": 1e-3, "adversarial": 0.1}}
    run["optimizer"] = {"kind": "adamw", "lr": 0.003}
    run["data"] = {
        "train": f"folder:{pictures / 'train'}", "val": f"folder:{pictures / 'val'}", "workers": 0, "augment": {"flip": 0.5},
    }  # fmt: skip
    run["train"] |= {"steps": 16, "global_batch": 12, "micro_batch": 4}
    run["evaluate"] = {"every": "8 steps", "batch": 4}
    run["checkpoint"] = {"every": "4 steps", "keep": 2}
    for name, value in sections.items():
        run[name] = {**run[name], **value}
    path.write_text(json.dumps(run))
    return path


@pytest.fixture(scope="module")
def whole(zygote: Zygote, pictures: Path, tmp_path_factory: pytest.TempPathFactory) -> RunDir:
    folder = tmp_path_factory.mktemp("whole")
    assert zygote.run(file(folder, pictures), folder, world=2) == [0, 0]
    return RunDir(folder / "run")


def test_killed_on_two_ranks_and_on_one_rank_it_ends_the_same(
    trainers: Zygote, whole: RunDir, pictures: Path, tmp_path: Path
) -> None:
    broken, one = tmp_path / "broken", tmp_path / "one"
    assert KILLED in trainers.run(file(broken, pictures), broken, world=2, fault="step@6:1=kill")
    assert trainers.run(file(broken, pictures), broken, world=2) == [0, 0]
    same(broken / "run", whole.path)
    assert trainers.run(file(one, pictures, train={"micro_batch": 12}), one) == [0]
    keys = ("train/loss", "loss/adversarial", "loss/critic", "val/psnr", "val/kl")
    found = [[p[key] for p in points(folder) for key in keys if key in p] for folder in (one / "run", whole.path)]
    assert len(found[0]) == 3 * 16 + 2 * 2
    assert found[0][:3] == pytest.approx(found[1][:3], abs=2e-6), "the draws are the same"
    assert found[0] == pytest.approx(found[1], rel=1e-3, abs=5e-3), "to what Adam makes of rounding"


def test_the_export_is_an_autoencoder_of_diffusers(
    whole: RunDir, pictures: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "export"
    assert main(["export", str(whole.path), "--device", "cpu", "--out", str(out), "--checkpoint", "last"]) == 0
    plain: Any = diffusers.AutoencoderKL.from_pretrained(out)
    images = [torch.from_numpy(np.array(Image.open(pictures / "val" / f"{n:03d}.png"))).permute(2, 0, 1) for n in range(13)]
    batch = torch.stack(images) / 127.5 - 1
    with torch.no_grad():
        posterior = plain.encode(batch).latent_dist
        made = plain.decode(posterior.mean).sample
    values = ((made + 1) * 127.5).round().clamp(0, 255)
    shown = sheet.read(whole.samples / "step-00000016.png")
    assert shown is not None
    assert shown[1].captions == ("input", "output") * 3
    assert np.abs(np.array(shown[0])[:16, 18:34].astype(int) - values[0].permute(1, 2, 0).numpy()).max() <= 1
    square = (values / 255 - torch.stack(images) / 255).square().flatten(1).mean(dim=1)
    last = [p for p in points(whole.path) if "val/psnr" in p][-1]
    assert last["val/psnr"] == pytest.approx(float((-10 * square.log10()).mean()), abs=0.01)
    spread = (posterior.mean.square() + posterior.var).mean() - posterior.mean.mean() ** 2
    assert plain.config.scaling_factor == pytest.approx(float(spread.sqrt()) ** -1, rel=1e-3)
    codec = Codec.of(f"diffusers:{out}", None)
    assert (codec.channels, codec.factor) == (2, 2)
    assert "| kl |" in (out / "README.md").read_text()
    assert main(["report", str(whole.path)]) == 0
    assert "the same validation pictures; columns: input, output" in whole.report.read_text()
    assert main(["evaluate", str(whole.path), "--device", "cpu", "--checkpoint", "last", "--json"]) == 0
    assert json.loads(capsys.readouterr().out.partition("{")[2].join(["{", ""]))["samples"] == 13

    built = build_model(Model(source=f"diffusers:{out}", adapt=Adapt(image_size=16)), "auto", Reconstructor(), 0)
    assert torch.equal(built.network(batch)[0], made), "it can be fine-tuned again"
    assert all(parameter.requires_grad for parameter in built.network.parameters())


def test_a_saved_autoencoder_learns_on_and_is_exported_without_its_source(
    trainers: Zygote, pictures: Path, tmp_path: Path
) -> None:
    """Its weights are read once, where they are asked for; what generators on its latents count on is kept."""
    saved, other = tmp_path / "saved", tmp_path / "other.safetensors"
    torch.manual_seed(5)
    plain = diffusers.AutoencoderKL(**VAE, scaling_factor=0.5)
    plain.save_pretrained(saved)
    torch.manual_seed(6)
    save_file({name: value.clone() for name, value in diffusers.AutoencoderKL(**VAE).state_dict().items()}, other)

    def weight(seed: int = 0, *, load_weights: bool = True, **given: Any) -> torch.Tensor:
        model = Model(source=f"diffusers:{saved}", adapt=Adapt(image_size=16), **given)
        built = build_model(model, "auto", Reconstructor(), seed, load_weights=load_weights)
        found: torch.Tensor = built.network.state_dict()[NAME]
        return found

    assert torch.equal(weight(), plain.state_dict()["decoder.conv_out.weight"])
    assert torch.equal(weight(weights=str(other)), load_file(other)["decoder.conv_out.weight"])
    random = weight(weights="none")
    assert torch.equal(random, weight(weights="none"))
    assert torch.equal(random, weight(load_weights=False))
    assert not torch.equal(random, weight(1, weights="none"))
    assert not torch.equal(random, weight())

    model = {"source": f"diffusers:{saved}", "args": {}}
    assert trainers.run(file(tmp_path, pictures, model=model, train={"steps": 2}), tmp_path) == [0]
    (saved / "diffusion_pytorch_model.safetensors").unlink()
    folder, out = tmp_path / "run", tmp_path / "export"
    assert main(["export", str(folder), "--device", "cpu", "--out", str(out), "--checkpoint", "last"]) == 0
    assert diffusers.AutoencoderKL.from_pretrained(out).config["scaling_factor"] == 0.5
    with pytest.raises(UserError, match="no weights"):
        weight()


def test_the_divergence_is_that_of_the_paper() -> None:
    mean, logvar = torch.randn(3, 2, 4, 4), torch.randn(3, 2, 4, 4)
    task = Autoencode(Run.model_validate({**run(), "task": {"kind": "autoencoder", "losses": ["mse"]}}).task)  # type: ignore[arg-type]
    found = task.more(Coded(torch.zeros(3, 3, 8, 8), mean, logvar))
    normal = torch.distributions.Normal
    own, standard = normal(mean, (0.5 * logvar).exp()), normal(torch.zeros(()), torch.ones(()))
    divergence = torch.distributions.kl_divergence(own, standard).sum(dim=(1, 2, 3)) / (3 * 8 * 8)
    assert torch.allclose(found["kl"], divergence, atol=1e-5)
    assert tuple(found) == task.more_names


def run(**sections: Any) -> dict[str, Any]:
    return {
        "name": "r", "task": {"kind": "autoencoder"}, "model": {"source": "diffusers:AutoencoderKL"},
        "losses": {"weights": {"kl": 1e-6}}, "strategy": {"kind": "full"}, "data": {"train": "folder:x"},
        "optimizer": {"kind": "adam", "lr": 1e-3}, **sections,
    }  # fmt: skip


def test_what_is_refused(tmp_path: Path) -> None:
    pipeline = latent_pipeline(tmp_path)
    for sections, message in (
        ({"losses": {}}, "write losses.weights: {kl: 1e-6}"),
        ({"losses": {"balance": {"kind": "dwa"}}}, "write losses.weights: {kl: 1e-6}"),
        ({"losses": {"balance": {"kind": "match"}}}, "far less; write losses.weights: {kl: 1e-6} in its place, or leave kl out"),
        (
            {"task": {"kind": "autoencoder", "losses": ["l1", "kl", "adversarial"]}, "losses": {"balance": {"kind": "match"}}},
            "write losses.weights: {kl: 1e-6, adversarial: 0.1} in its place",
        ),
        (
            {"task": {"kind": "autoencoder", "losses": ["l1", "kl", "adversarial"]}, "losses": {"balance": {"kind": "dwa"}}},
            "says nothing of that; write losses.weights",
        ),
        ({"task": {"kind": "autoencoder", "losses": ["kl"]}}, "compared with its input by l1 or mse"),
        ({"data": {"train": "folder:x", "normalize": "imagenet"}}, "pixels from -1 to 1"),
    ):
        with pytest.raises(ValueError, match=message):
            Run.model_validate(run(**sections))
    for model, message in (
        (Model(source="torchvision:vgg16", adapt=Adapt(image_size=16)), "an autoencoder is diffusers:FOLDER"),
        (Model(source="diffusers:AutoencoderKL", args=VAE, adapt=Adapt(image_size=17)), "takes multiples of 2; write 16 or 18"),
        (Model(source="diffusers:AutoencoderKL", args={"layers": 2}, adapt=Adapt(image_size=16)), "layers is no argument of"),
        (Model(source="diffusers:AutoencoderKL", args=VAE), "image_size is missing"),
        (Model(source=f"{pipeline}#transformer"), r"model\.source: .* is a DiTTransformer2DModel, .* name another part: vae"),
        (Model(source=pipeline, adapt=Adapt(image_size=16)), r"takes 1 channels; write model\.adapt\.in_channels: 1"),
    ):
        with pytest.raises(UserError, match=message):
            build_model(model, "auto", Reconstructor(), 0)
