"""Networks that are told texts by several encoders: the same images as with diffusers, what is adapted, what is refused."""

from __future__ import annotations

import logging
from collections.abc import Callable
from pathlib import Path
from typing import Any

import diffusers
import pytest
import torch
from torch import nn

from tests.unit import joint
from tests.unit.test_generators import VAE
from tests.unit.test_texts import rewrite
from trainer.config import UserError
from trainer.config.adapt import Adapt
from trainer.config.run import Model
from trainer.config.strategies.lora import Config as Lora
from trainer.config.targets import Facts
from trainer.config.tasks.diffusion import Config
from trainer.data import Batch
from trainer.export import adapters, pipeline
from trainer.models import Built, build_model
from trainer.spec import Generator
from trainer.strategies import inject, merge
from trainer.tasks.diffusion import Diffusion
from trainer.tasks.diffusion import build as build_task
from trainer.tasks.sampler import scheduler

CPU = torch.device("cpu")
TEXTS = ("Hat ", "a pair of shoes")
SIZED: dict[str, Any] = {
    "sample_size": 128, "patch_size": 16, "num_attention_heads": 3, "cross_attention_dim": 12,
    "vae": {"mid_block_add_attention": False},
}  # fmt: skip


def task_of(built: Built, **more: Any) -> Diffusion:
    settings = {"condition": "text", "vae": "pipeline", "samples": {"steps": 4}, **more}
    task = build_task(Config.model_validate(settings), Facts.plain(TEXTS, [1, 1]))
    assert built.beside is not None
    task.bind(built.beside, 0)
    return task


def learn(network: nn.Module, task: Diffusion, size: int, steps: int = 6) -> tuple[float, float]:
    """The loss on four images before and after a few steps."""
    torch.manual_seed(0)
    batch = Batch(torch.randn(4, 1, size, size), torch.tensor([0, 1, 0, 1]), torch.arange(4), epochs=torch.zeros(4).long())
    optimizer = torch.optim.Adam([p for p in network.parameters() if p.requires_grad], lr=0.01)
    losses = []
    for _ in range(steps):
        loss = task.error(task.run(network, batch)).mean()
        optimizer.zero_grad()
        torch.autograd.backward(loss)
        assert all(p.grad is not None for p in network.parameters() if p.requires_grad), "as data parallelism counts on"
        optimizer.step()
        losses.append(float(loss.detach()))
    return losses[0], losses[-1]


@pytest.mark.parametrize(
    ("make", "more", "size", "name", "lengths"),
    [
        (joint.sd3_pipeline, {"last": False, "qk_norm": "rms_norm", "dual_attention_layers": (0,)}, 8, "StableDiffusion3", 268),
        (joint.flux_pipeline, {"dynamic": False, "guidance_embeds": False}, 12, "Flux", 512),
        (joint.flux_pipeline, {}, 8, "Flux", 512),
        (joint.pixart_pipeline, SIZED, 256, "PixArtAlpha", 120),
        (joint.pixart_pipeline, {"sigma": True, "out_channels": 2}, 16, "PixArtSigma", 300),
        (joint.xl_pipeline, {}, 8, "StableDiffusionXL", 12),
        (joint.xl_pipeline, {"zeros": False}, 8, "StableDiffusionXL", 12),
    ],
)
def test_plain_diffusers_makes_the_same_images(
    tmp_path: Path, make: Callable[..., str], more: dict[str, Any], size: int, name: str, lengths: int
) -> None:
    built = joint.build(make(tmp_path / "pipe", **more), image_size=size)
    task = task_of(built)
    task.ready(CPU)
    first, last = learn(built.network, task, size)
    assert last < first
    form, _ = pipeline.write(built.network.eval(), task, tmp_path / "new")
    assert form.name == f"{name}Pipeline"
    pipe = getattr(diffusers, form.name).from_pretrained(tmp_path / "new", **form.load)
    assert pipeline.compared(pipe, built.network, task, form) <= 1

    told = task.told(torch.tensor([0, 1, -1]))
    assert told["text"].shape[1] == lengths
    if name == "PixArtAlpha" or name == "PixArtSigma":
        text, mask, nothing, _ = pipe.encode_prompt(list(TEXTS), max_sequence_length=lengths, device=CPU)
        assert torch.equal(told["mask"][:2], mask.float())
    elif name == "Flux":
        text, pooled, _ = pipe.encode_prompt(list(TEXTS), device=CPU)
        nothing, no_pooled, _ = pipe.encode_prompt(["", ""], device=CPU)
    else:
        given = [list(TEXTS)] * (3 if name == "StableDiffusion3" else 2)
        text, nothing, pooled, no_pooled = pipe.encode_prompt(*given, device=CPU)
    torch.testing.assert_close(told["text"], torch.cat([text, nothing[:1]]), rtol=1e-4, atol=1e-4)
    if "pooled" in told:
        torch.testing.assert_close(told["pooled"], torch.cat([pooled, no_pooled[:1]]), rtol=1e-4, atol=1e-4)

    with torch.no_grad():
        built.network.get_parameter(f"{built.head[0]}.bias").add_(1)
    assert pipeline.compared(pipe, built.network, task, form) > 1, "a network that is another one"


@pytest.mark.parametrize("make", [joint.flux_pipeline, joint.xl_pipeline])
def test_adapters_are_loaded_by_diffusers(tmp_path: Path, make: Callable[..., str]) -> None:
    built = joint.build(make(tmp_path / "pipe"))
    config = Lora(rank=2, head="keep")
    inject(config, built.network, built.head, (), 0)
    for name, parameter in built.network.named_parameters():
        parameter.requires_grad_("lora_" in name)
    task = task_of(built)
    learn(built.network, task, 8)
    layers = adapters.layers(built.network)
    network = merge(config, built.network).eval()
    form, _ = pipeline.write(network, task, tmp_path / "new")
    made = getattr(diffusers, form.name)
    made.save_lora_weights(tmp_path, **{f"{form.part}_lora_layers": layers}, weight_name=adapters.FILE)
    pipe = made.from_pretrained(tmp_path / "pipe", **form.load)
    pipe.scheduler = scheduler(task.plan().settings, "auto")
    assert pipeline.compared(pipe, network, task, form) > 1
    pipe.load_lora_weights(tmp_path, weight_name=adapters.FILE)
    assert pipeline.compared(pipe, network, task, form) <= 1


@pytest.mark.parametrize("make", [joint.sd3_pipeline, joint.flux_pipeline, joint.pixart_pipeline])
def test_channels_are_adapted(tmp_path: Path, make: Callable[..., str]) -> None:
    """By the rule zero a third channel of the latents changes nothing in the first two."""
    source = make(tmp_path / "pipe")
    torch.manual_seed(0)
    shifted = {} if make is not joint.pixart_pipeline else {"shift_factor": None}
    diffusers.AutoencoderKL(**{**VAE, **shifted, "latent_channels": 3}).save_pretrained(tmp_path / "vae")
    old = joint.build(source)
    config = Model(source=source, adapt=Adapt(in_channels=1, image_size=8, channels="zero"))
    new = build_model(config, "auto", Generator(("a",), True, f"diffusers:{tmp_path / 'vae'}", True), 0)
    assert len(new.head) == len(old.head) + 1, "the input learns as well"
    said = []
    for built in (old, new):
        assert built.beside is not None
        assert built.beside.text is not None
        torch.manual_seed(1)
        images = torch.randn(2, 3, 4, 4)[:, : built.beside.channels]
        told = built.beside.text.encode(["hat", "shoes"], CPU)
        with torch.no_grad():
            said.append(built.beside.call(built.network.eval(), images, torch.tensor([300.0, 700.0]), told))
    torch.testing.assert_close(said[0][:, :2], said[1][:, :2])
    assert not said[1][:, 2].any()


def test_what_does_not_fit_is_refused(tmp_path: Path) -> None:
    source = joint.sd3_pipeline(tmp_path / "sd3")
    for size, message in ((20, "do(es)? .*: set model.adapt.image_size"), (10, "nearest sizes that it does are 8 and 12")):
        with pytest.raises(UserError, match=message):
            joint.build(source, image_size=size)
    assert joint.build(source, image_size=16).spec.image_size == 16
    config = Model(source=source, adapt=Adapt(in_channels=1, image_size=8))
    with pytest.raises(UserError, match=r"makes latents of an AutoencoderKL, and task\.vae is none; write task\.vae: pipeline"):
        build_model(config, "auto", Generator(("a",), True, None, True), 0)
    built = joint.build(source)
    with pytest.raises(UserError, match=r"diffusers samples this network by flow alone; write task\.objective: flow$"):
        task_of(built, objective="epsilon", retarget=True)
    with pytest.raises(UserError, match="the sampler ddim does not go with flow"):
        task_of(built, samples={"sampler": "ddim", "steps": 4})
    joint.t5(32).save_pretrained(tmp_path / "sd3" / "text_encoder_3")
    with pytest.raises(UserError, match=r"told texts of 16 numbers a token, and the text encoder beside it gives 32"):
        joint.build(source)
    rewrite(tmp_path / "sd3" / "model_index.json", tokenizer_2=[None, None])
    with pytest.raises(UserError, match="its tokenizer_2 is missing; a text goes through CLIPTokenizer"):
        joint.build(source)

    flux = joint.flux_pipeline(tmp_path / "flux")
    with pytest.raises(UserError, match="does not say what size it makes"):
        joint.build(flux, image_size=None)
    told = Generator(("a",), True, "pipeline", True, distilled=2.0)
    with pytest.raises(UserError, match=r"distilled_guidance is 2, and .* is not told how strongly it is guided; leave it out"):
        build_model(
            Model(source=joint.flux_pipeline(tmp_path / "fast", guidance_embeds=False), adapt=config.adapt), "auto", told, 0
        )
    with pytest.raises(UserError, match="the pipeline of this network takes the sampler euler alone"):
        task_of(joint.build(flux), samples={"sampler": "heun", "steps": 4}, noise={"shift": 3.0})
    rewrite(tmp_path / "flux" / "transformer" / "config.json", in_channels=16, out_channels=8)
    with pytest.raises(UserError, match="takes 16 channels and gives 8 makes images of other images"):
        joint.build(flux)

    xl = joint.xl_pipeline(tmp_path / "xl")
    with pytest.raises(UserError, match="diffusers' pipeline of this network samples by betas; write epsilon or v"):
        task_of(joint.build(xl), objective="flow", retarget=True)
    rewrite(tmp_path / "xl" / "vae" / "config.json", shift_factor=0.5)
    with pytest.raises(UserError, match=r"shifts its latents \(shift_factor\), which the pipelines for .* do not look at"):
        joint.build(xl)
    rewrite(tmp_path / "xl" / "vae" / "config.json", shift_factor=None, latents_mean=[0.0, 0.0])
    with pytest.raises(UserError, match=r"scales each channel of its latents \(latents_mean\)"):
        joint.build(xl)
    pixart = joint.pixart_pipeline(tmp_path / "pixart", **SIZED)
    with pytest.raises(
        UserError,
        match=r"for latents of 128 x 128 alone, and these are 64 x 64; leave model\.adapt\.image_size out",
    ):
        joint.build(pixart, image_size=128)
    with pytest.raises(UserError, match=r"makes images of multiples of 8 pixels, and .* is 12; write 8 or 16"):
        joint.build(joint.pixart_pipeline(tmp_path / "small"), image_size=12)


def test_a_text_is_too_long_where_no_encoder_sees_its_end(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """CLIP sees 12 tokens, T5 256; the noise is shifted as the scheduler says, or by the number of places."""
    built = joint.build(joint.sd3_pipeline(tmp_path / "sd3"))
    task = task_of(built)
    with caplog.at_level(logging.WARNING, "graft"):
        task.number("a text of more letters than twelve")
        assert not caplog.text
        task.number("x" * 300)
    assert "1 of 1 texts have more tokens than the 256 that the encoder sees" in caplog.text
    assert float(task.process.at(torch.tensor([0.5], dtype=torch.float64)).times) == pytest.approx(750.0), "shift: 3"

    flux = joint.build(joint.flux_pipeline(tmp_path / "flux"))
    assert task_of(flux).process.settings["use_dynamic_shifting"]
    fixed = task_of(flux, noise={"shift": 3.0}).process
    assert not fixed.settings["use_dynamic_shifting"]
    assert float(fixed.at(torch.tensor([0.5], dtype=torch.float64)).times) == pytest.approx(750.0)
