"""A diffusion model that is given a picture: what becomes of its weights, what it learns from, what is refused."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import diffusers
import pytest
import torch
from safetensors.torch import save_file
from torch import nn
from torchmetrics.functional.image import learned_perceptual_image_patch_similarity as lpips_of
from torchvision import models

from tests.faults.test_repainting import file
from tests.painter import painter, photographs
from tests.unit.test_generators import HERE, UNET, latent_pipeline, own, unet
from tests.unit.test_texts import text_pipeline
from trainer import judges
from trainer.config import UserError, load
from trainer.config.adapt import Adapt
from trainer.config.model import Model
from trainer.config.strategies.lora import Config as Lora
from trainer.config.targets import Facts
from trainer.config.tasks.diffusion import Config
from trainer.config.tasks.translate import Config as Translation
from trainer.data.batch import Batch
from trainer.export import pipeline
from trainer.lpips import Lpips
from trainer.models import Built, build_model
from trainer.spec import Generator, InputSpec, Output
from trainer.strategies import apply
from trainer.tasks import draws
from trainer.tasks.diffusion import Diffusion, build
from trainer.tasks.likening import Ruler, figures
from trainer.tasks.translate import build as translation

CPU = torch.device("cpu")


def built(source: str, *, beside: bool = True, vae: str | None = None, size: int = 8, **more: Any) -> Built:
    args, weights = more.pop("args", {}), more.pop("weights", "DEFAULT")
    config = Model(source=source, args=args, weights=weights, adapt=Adapt(**{"in_channels": 1, "image_size": size, **more}))
    return build_model(config, "auto", Generator(vae=vae, source=beside), 0)


def said(of: Built, source: float | torch.Tensor | None = None) -> torch.Tensor:
    """What a network says of some noised images; `source`: what is beside them."""
    assert of.beside is not None
    shape = (2, of.beside.channels, of.beside.size, of.beside.size)
    images = torch.randn(shape, generator=torch.Generator().manual_seed(0))
    told = {} if source is None else {"source": source if isinstance(source, torch.Tensor) else torch.full(shape, source)}
    with torch.no_grad():
        return of.beside.call(of.network.eval(), images, torch.tensor([3, 700]), told)


def first(of: Built) -> nn.Parameter:
    found: Any = of.network.get_submodule(of.fresh[0].removesuffix(".weight"))
    weight: nn.Parameter = found.weight
    return weight


@pytest.mark.parametrize("kind", ["unet", "transformer on latents", "of one's own"])
def test_a_pretrained_network_goes_on_as_if_nothing_were_beside(kind: str, tmp_path: Path) -> None:
    more: dict[str, Any] = {}
    if kind == "unet":
        source = unet(tmp_path)
    elif kind == "of one's own":
        source, more = HERE, {"args": {"classes": 0}, "weights": str(tmp_path / "own.safetensors")}
        save_file(own(0).state_dict(), tmp_path / "own.safetensors")
    else:
        source, more = latent_pipeline(tmp_path), {"vae": "pipeline"}
    plain, wide = built(source, beside=False, **more), built(source, **more)
    (name,) = wide.fresh
    assert name == {"unet": "conv_in.weight", "of one's own": "first.weight"}.get(kind, "pos_embed.proj.weight")
    assert "channels of a source picture begin at zero" in "".join(wide.report.adapted)
    assert torch.equal(said(wide, 0.3), said(wide, -0.7))
    torch.testing.assert_close(said(wide, 0.3), said(plain), rtol=1e-6, atol=1e-6)
    assert wide.beside is not None
    with torch.no_grad():
        first(wide)[:, wide.beside.channels :] += 0.1
    assert not torch.allclose(said(wide, 0.3), said(wide, -0.7)), "the new channels are those of the source"
    with pytest.raises(UserError, match="is new and has to learn; write full"):
        apply(Lora(head="keep"), wide.network, wide.head, wide.fresh, lambda amount: 0)


def test_what_was_learnt_of_the_source_is_kept_or_left(tmp_path: Path) -> None:
    """A saved network that takes twice what it gives; three channels of one by the rule."""
    torch.manual_seed(2)
    made = diffusers.UNet2DModel(sample_size=8, in_channels=2, out_channels=1, **UNET).eval()
    made.save_pretrained(tmp_path)
    source = f"diffusers:{tmp_path}"
    again = built(source)
    assert not again.fresh
    beside = torch.randn(2, 1, 8, 8, generator=torch.Generator().manual_seed(1))
    images = torch.randn(2, 1, 8, 8, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        expected = made(torch.cat([images, beside], dim=1), torch.tensor([3, 700])).sample
    assert torch.equal(said(again, beside), expected)
    alone = built(source, beside=False)
    assert torch.equal(alone.network.state_dict()["conv_in.weight"], made.conv_in.weight[:, :1])
    assert "no source picture any more" in "".join(alone.report.adapted)
    three = built(source, in_channels=3).network.state_dict()["conv_in.weight"]
    torch.testing.assert_close(three, made.conv_in.weight.repeat_interleave(3, dim=1) / 3)
    trunk = build_model(Model(source=source, adapt=Adapt(in_channels=1, image_size=8)), "auto", (Output("", ("a", "b")),), 0)
    assert torch.equal(trunk.network.state_dict()["conv_in.weight"], made.conv_in.weight[:, :1]), "a trunk sees a picture alone"


def task(of: Built, **config: Any) -> Diffusion:
    settings = {"condition": "none", "pairs": "small", "samples": {"steps": 2, "count": 3, "batch": 2}, **config}
    made = build(Config.model_validate(settings), Facts(()))
    assert of.beside is not None
    made.bind(of.beside, 5)
    made.ready(CPU)
    return made


def test_a_network_that_is_told_texts_is_told_the_empty_one(tmp_path: Path) -> None:
    """On latents: of the source their mean; the export, with its encoder, makes the same pictures."""
    source = text_pipeline(tmp_path / "pipe", sample_size=8)
    of = built(source, vae="pipeline", size=16)
    made = task(of, vae="pipeline")
    assert of.beside is not None
    assert of.beside.vae is not None
    assert of.beside.text is not None
    pairs = torch.rand(3, 2, 16, 16, generator=torch.Generator().manual_seed(1)) * 2 - 1
    nothing = torch.zeros(3, dtype=torch.int64)
    batch = Batch(pairs, nothing, torch.arange(3), epochs=nothing)
    seen: list[Any] = []
    of.network.get_submodule("conv_in").register_forward_hook(lambda _, given, __: seen.append(given[0]))
    output = made.run(of.network, batch)
    mean, deviation = of.beside.vae.encode(pairs[:, 1:])
    clean = mean + deviation * draws.normal(draws.keys(5, 4, nothing, torch.arange(3)), mean.shape[1:])
    noise = draws.normal(draws.keys(5, 1, nothing, torch.arange(3)), mean.shape[1:])
    torch.testing.assert_close(seen[0][:, :2], output.at.alpha * clean + output.at.sigma * noise)
    assert torch.equal(seen[0][:, 2:], of.beside.vae.encode(pairs[:, :1])[0])
    assert torch.equal(made.told(torch.tensor([0, 4]))["text"], of.beside.text.encode(["", ""], CPU)["text"])
    with torch.no_grad():
        first(of)[:, 2:] += 0.1
    form, _ = pipeline.write(of.network.eval(), made, tmp_path / "new")
    assert form.name == "TranslationPipeline"
    pipeline.check(of.network, made, form, tmp_path / "new")
    with torch.no_grad():
        first(of)[:, 2:] += 1
    with pytest.raises(UserError, match="makes other images than the run"):
        pipeline.check(of.network, made, form, tmp_path / "new")


def test_transformers_and_their_pipelines(tmp_path: Path) -> None:
    of = built(latent_pipeline(tmp_path / "pipe"), vae="pipeline")
    with torch.no_grad():
        first(of)[:, 2:] += 0.1
    made = build(Config.model_validate({"condition": "none", "pairs": "small", "samples": {"count": 0}}), Facts(()))
    assert of.beside is not None
    made.bind(of.beside, 0)
    form, told = pipeline.write(of.network.eval(), made, tmp_path / "new")
    pipeline.check(of.network, made, form, tmp_path / "new")
    # it takes four channels and gives four, two of them variances: what it was learnt with says graft.json
    (tmp_path / "new" / "graft.json").write_text(json.dumps(told))
    again = built(f"diffusers:{tmp_path / 'new'}", vae="pipeline")
    assert not again.fresh
    assert again.beside is not None
    assert again.beside.channels == 2
    torch.testing.assert_close(said(again, 0.3), said(of, 0.3), rtol=1e-6, atol=1e-6)
    assert not torch.allclose(said(again, 0.3), said(again, -0.7)), "the channels of the source are those that were learnt"
    sees = Model(source=f"diffusers:{tmp_path / 'new'}#vae", adapt=Adapt(in_channels=1, image_size=8))
    trunk = build_model(sees, "auto", (Output("", ("a", "b")),), 0)
    assert trunk.spec.in_channels == 1


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"condition": "class"}, "write condition: none"),
        ({"fidelity": {"samples": 9}}, "pairs are compared with their targets"),
        ({"lpips": "alex", "samples": {"count": 0}}, "write samples.count: 16"),
        ({"pairs": None, "lpips": "alex"}, "there are no pairs; leave it out"),
    ],
)
def test_settings_that_do_not_go_with_pairs(settings: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        Config.model_validate({"condition": "none", "pairs": "grey", **settings})


def test_what_is_refused_before_anything_starts(tmp_path: Path) -> None:
    of = built(unet(tmp_path / "unet"))
    with pytest.raises(UserError, match="measured in windows of 11 pixels"):
        task(of)
    with pytest.raises(UserError, match=r"task\.lpips: alex takes pictures of 31 pixels and more"):
        task(built(unet(tmp_path / "other"), size=16), lpips="alex")
    with pytest.raises(UserError, match="takes 2 channels, and with the source picture beside the noised one it has to take 3"):
        built(HERE, args={"classes": 0, "channels": 2}, weights="none", in_channels=3)
    photographs(tmp_path / "train", 4, 0, 20)
    model = {"source": "diffusers:UNet2DModel", "args": UNET, "adapt": {"image_size": 20}}
    given = {"train": "pairs:x", "val": "pairs:x"}
    grey = file(tmp_path, tmp_path, model=model, data={"train": f"folder:{tmp_path / 'train'}", "val": "split:0.5"})
    for change, message in (
        (("data.train=pairs:x",), "says pairs itself; write task.pairs: given"),
        (("task.pairs=given",), "task.pairs: given takes pairs:FOLDER"),
        (("task.pairs=side", "data.augment.color=0.2"), "data.augment.color would change the two pictures of a pair"),
        (("data.cache=features",), "the latents of pairs are not kept"),
    ):
        with pytest.raises(UserError, match=message):
            load(grey, list(change))
    assert load(grey, ["task.pairs=given", *(f"data.{key}={value}" for key, value in given.items())]).task.looks_at == "nothing"


@pytest.mark.parametrize(("name", "trunk"), [("squeeze", "squeezenet1_1"), ("alex", "alexnet")])
def test_lpips_is_that_of_torchmetrics(name: Any, trunk: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Its trunk from a file with other values, in the published one's place; as a loss it has a gradient."""
    monkeypatch.setenv("TORCH_HOME", str(tmp_path))
    (need,) = judges.all_needs(Config.model_validate({"condition": "none", "pairs": "grey", "lpips": name}))
    assert need.file.parent == tmp_path / "hub" / "checkpoints"
    with pytest.raises(UserError, match=rf"task\.lpips: .*{trunk} are not here; run `graft fetch RUN` .* or put https://"):
        Lpips(name, CPU)
    need.file.parent.mkdir(parents=True)
    torch.manual_seed(1)
    torch.save(models.get_model(trunk).state_dict(), need.file)
    lpips = Lpips(name, CPU)
    made = torch.randint(0, 256, (3, 3, 40, 36), dtype=torch.uint8)
    target = (made.float() * 0.6 + 30).to(torch.uint8)
    one, other = (value.float() / 127.5 - 1 for value in (made, target))
    expected = lpips_of(one, other, net_type=name, reduction="none")
    found = Ruler(name, lpips)(made, target)
    torch.testing.assert_close(found[:, 3].float(), expected, rtol=1e-5, atol=1e-7)
    assert float(expected.min()) > 1e-4
    assert torch.equal(found[:, :3], figures(made, target))
    grey = Ruler(name, lpips)(made[:, :1], target[:, :1])
    torch.testing.assert_close(grey, Ruler(name, lpips)(*(v[:, :1].expand(-1, 3, -1, -1) for v in (made, target))))
    learning = one.clone().requires_grad_()
    torch.autograd.backward(lpips(learning, other).sum())
    assert learning.grad is not None
    assert float(learning.grad.abs().max()) > 0
    assert not any(parameter.requires_grad for parameter in lpips.network.parameters())
    torch.save({"features.0.weight": torch.zeros(1)}, need.file)
    with pytest.raises(UserError, match=rf"holds no {trunk}: 'features\.0\.weight' is missing or of another shape"):
        Lpips(name, CPU)


def test_lpips_as_a_loss_and_over_exactly_the_pairs() -> None:
    """Of a network that makes a picture in one pass; cut over two ranks anyhow."""
    with pytest.raises(ValueError, match="write lpips: vgg, or alex"):
        Translation.model_validate({"pairs": "grey", "losses": ["l1", "lpips"]})
    config = Translation.model_validate({"pairs": "grey", "losses": ["l1", "lpips"], "lpips": "squeeze"})
    assert config.measured() == ("loss", "psnr", "ssim", "mae", "lpips_squeeze")
    made, lpips, network = translation(config, Facts(())), Lpips("squeeze", CPU, load_weights=False), painter()
    made.perceive({"lpips": lpips}, {"l1": 1.0, "lpips": 0.5})
    made.fit(InputSpec(1, 20, (0.5,), (0.5,)), network, 0)
    images = (torch.randint(0, 256, (7, 4, 20, 20)) / 127.5 - 1).float()
    nothing = torch.zeros(7, dtype=torch.int64)
    with torch.no_grad():
        pictures = ((network(images[:, :1]) + 1) * 127.5).round().clamp(0, 255) / 127.5 - 1
        expected = float(lpips(pictures, images[:, 1:]).mean())
    ranks = []
    for rows in ([0, 3], [1, 2, 4, 5, 6]):
        measure = made.measure(7, CPU)
        measure.update(network, Batch(images[rows], nothing[rows], torch.tensor(rows)))
        ranks.append(measure)
    for one, other in zip(ranks[0].tensors(), ranks[1].tensors(), strict=True):
        one += other
    found = ranks[0].result()
    assert found.metrics["lpips_squeeze"] == pytest.approx(expected, rel=1e-5)
    assert found.details["losses"]["lpips"] == pytest.approx(expected, rel=0.05), "of what is not yet rounded"
    losses = made.losses(made.run(network, Batch(images, nothing, nothing)), Batch(images, nothing, nothing))
    torch.autograd.backward(losses["lpips"].sum())
    assert all(parameter.grad is not None and parameter.grad.any() for parameter in network.parameters())
