"""The noise of the task diffusion: its draws, its times, its targets and weights, and the way back to images."""

from __future__ import annotations

from typing import Any

import diffusers
import pytest
import torch
from diffusers.training_utils import compute_snr
from torch import nn

from trainer.config import UserError
from trainer.config.targets import Facts
from trainer.config.tasks.diffusion import Config
from trainer.data.batch import Batch
from trainer.spec import Beside
from trainer.tasks import draws
from trainer.tasks.diffusion import Diffusion, build
from trainer.tasks.process import Process, process
from trainer.tasks.sampler import Plan, sample

WORD = (1 << 64) - 1


def splitmix(state: int, count: int) -> list[int]:
    """The published generator, in whole numbers of Python."""
    found = []
    for _ in range(count):
        state = (state + 0x9E3779B97F4A7C15) & WORD
        word = ((state ^ state >> 30) * 0xBF58476D1CE4E5B9) & WORD
        word = ((word ^ word >> 27) * 0x94D049BB133111EB) & WORD
        found.append(word ^ word >> 31)
    return found


def test_the_draws_are_those_of_splitmix64() -> None:
    assert splitmix(1234567, 2) == [6457827717110365317, 3203168211198807973]  # of its author's own program
    key = torch.tensor([1234567, -5])
    for start, row in zip((1234567, -5 & WORD), draws._words(key, 4).tolist(), strict=True):
        assert [word & WORD for word in row] == splitmix(start, 4)


def test_normal_numbers_are_normal_and_independent() -> None:
    drawn = draws.normal(draws.keys(0, 1, torch.arange(4000)), (500,)).double()
    assert drawn.mean().abs() < 0.005
    assert (drawn.var() - 1).abs() < 0.005
    assert (drawn.pow(4).mean() - 3).abs() < 0.03
    assert drawn.abs().max() > 4.5
    for shifted in (drawn[1:] * drawn[:-1], drawn[:, 1:] * drawn[:, :-1], drawn[:, :250] * drawn[:, 250:]):
        assert shifted.mean().abs() < 0.005
    even = draws.uniform(draws.keys(0, 2, torch.arange(100_000)))
    assert (even.histc(10, 0, 1) - 10_000).abs().max() < 400
    assert 0 <= float(even.min()) < float(even.max()) < 1


def test_a_sample_s_draws_depend_on_its_key_alone() -> None:
    epochs, indices = torch.tensor([0, 0, 1, 1 << 32, 7]), torch.tensor([3, 4, 3, 3, 900])
    together = draws.normal(draws.keys(9, 1, epochs, indices), (3, 5, 7))
    for row in range(5):
        alone = draws.normal(draws.keys(9, 1, epochs[row : row + 1], indices[row : row + 1]), (3, 5, 7))
        assert torch.equal(alone[0], together[row])
    others = [draws.keys(*given, epochs, indices) for given in ((9, 1), (9, 2), (10, 1))]
    assert len({int(key) for keys in others for key in keys}) == 15


def of(saved: dict[str, Any] | None = None, **config: Any) -> Process:
    return process(Config(**config), saved, latents=False)


SAVED = {
    "_class_name": "DDPMScheduler", "num_train_timesteps": 1000, "beta_schedule": "scaled_linear", "beta_start": 0.00085,
    "beta_end": 0.012, "prediction_type": "epsilon",
}  # fmt: skip


@pytest.mark.parametrize("betas", ["linear", "cosine", "sigmoid", "scaled_linear"])
def test_images_and_targets_are_those_of_diffusers(betas: str) -> None:
    found = of(objective="v", noise={"betas": betas})
    scheduler = diffusers.DDPMScheduler(beta_schedule=found.settings["beta_schedule"])
    images, noise = torch.randn(5, 2, 4, 4), torch.randn(5, 2, 4, 4)
    at = found.at(torch.tensor([0.0, 0.1234, 0.5, 0.9, 0.99999]))
    assert at.times.tolist() == [0, 123, 500, 900, 999]
    torch.testing.assert_close(at.alpha * images + at.sigma * noise, scheduler.add_noise(images, noise, at.times))
    torch.testing.assert_close(found.target(images, noise, at), scheduler.get_velocity(images, noise, at.times))
    assert torch.equal(of(objective="epsilon").target(images, noise, at), noise)
    assert torch.equal(of(objective="sample").target(images, noise, at), images)


def test_what_a_time_weighs() -> None:
    """Hang et al. 2023: the weight of the image's error is min(SNR, 5), of the noise's that over SNR, of v's over SNR + 1."""
    uniform = torch.linspace(0, 0.999, 50, dtype=torch.float64)
    scheduler = diffusers.DDPMScheduler()
    for objective, over in (("sample", 0), ("epsilon", 1), ("v", 2)):
        found = of(objective=objective, weighting="min_snr")
        at = found.at(uniform)
        snr = compute_snr(scheduler, at.times).double()
        expected = snr.clamp(max=5) / torch.stack([torch.ones_like(snr), snr, snr + 1])[over]
        torch.testing.assert_close(found.weights(at).double(), expected, rtol=1e-4, atol=1e-6)
        whole = of(objective=objective, weighting="snr").weights(at).double()
        torch.testing.assert_close(whole, snr / torch.stack([torch.ones_like(snr), snr, snr + 1])[over], rtol=1e-4, atol=1e-6)
        assert torch.equal(of(objective=objective).weights(at), torch.ones(50))
    zero = of(objective="v", weighting="min_snr", noise={"zero_snr": True})
    assert zero.at(torch.tensor([0.9999])).alpha.item() < 1e-6
    assert zero.weights(zero.at(torch.tensor([0.9999]))).item() < 1e-6


def test_flow() -> None:
    images, noise = torch.randn(3, 2, 4, 4), torch.randn(3, 2, 4, 4)
    found = of(objective="flow")
    at = found.at(torch.tensor([0.0, 0.25, 0.9], dtype=torch.float64))
    assert at.times.tolist() == pytest.approx([0, 250, 900])
    torch.testing.assert_close(found.target(images, noise, at), noise - images)
    torch.testing.assert_close((at.alpha * images + at.sigma * noise)[1], 0.75 * images[1] + 0.25 * noise[1])
    shifted = of(objective="flow", noise={"shift": 3.0})
    scheduler = diffusers.FlowMatchEulerDiscreteScheduler(shift=3.0)
    at = shifted.at(torch.arange(1, 1000, dtype=torch.float64) / 1000)
    torch.testing.assert_close(at.times, scheduler.timesteps.flip(0)[:-1], rtol=1e-5, atol=1e-3)
    assert shifted.settings["shift"] == 3.0


def test_times_in_the_middle_more_often() -> None:
    found = of(objective="flow", times={"kind": "logit_normal", "mean": 0.5, "std": 0.8})
    even = (torch.arange(20_000, dtype=torch.float64) + 0.5) / 20_000
    logits = torch.logit(found.at(even).share)
    assert float(logits.mean()) == pytest.approx(0.5, abs=1e-3)
    assert float(logits.std()) == pytest.approx(0.8, abs=1e-2)


def test_the_schedule_of_the_weights_is_kept(caplog: pytest.LogCaptureFixture) -> None:
    kept = of(SAVED)
    assert kept.objective == "epsilon"
    assert kept.settings == SAVED
    assert of({**SAVED, "prediction_type": "v_prediction"}).objective == "v"
    assert of({"_class_name": "FlowMatchEulerDiscreteScheduler", "num_train_timesteps": 1000, "shift": 3.0}).objective == "flow"
    assert not caplog.text
    changed = of(SAVED, noise={"end": 0.02})
    assert changed.settings["beta_end"] == 0.02
    assert "task.noise: beta_end is 0.02, and 0.012 in the scheduler saved with the weights" in caplog.text


@pytest.mark.parametrize(
    ("saved", "config", "message"),
    [
        (SAVED, {"objective": "v"}, "trained for epsilon; leave it out, or write task.retarget: true"),
        (SAVED, {"objective": "flow"}, "trained for epsilon"),
        ({"_class_name": "KarrasVeScheduler", "sigma_max": 100}, {}, "adds noise in a way that is not known here"),
        (SAVED, {"noise": {"zero_snr": True}}, "its noise says nothing; write task.objective: v with task.retarget: true"),
        (None, {"noise": {"start": 0.5, "end": 0.1, "steps": 10, "betas": "linear"}}, None),
    ],
)
def test_schedules_that_do_not_go_with_the_weights(saved: Any, config: dict[str, Any], message: str | None) -> None:
    if message is None:
        of(saved, **config)
        return
    with pytest.raises(UserError, match=message):
        of(saved, **config)


def test_weights_can_be_taught_another_objective() -> None:
    found = of(SAVED, objective="v", retarget=True)
    assert found.settings == {**SAVED, "prediction_type": "v_prediction"}
    flow = of(SAVED, objective="flow", retarget=True)
    assert flow.settings["_class_name"] == "FlowMatchEulerDiscreteScheduler"


@pytest.mark.parametrize(
    ("config", "message"),
    [
        ({"objective": "flow", "noise": {"end": 0.1}}, "are not of flow"),
        ({"objective": "v", "noise": {"shift": 2.0}}, r"noise\.shift is of objective: flow"),
        ({"objective": "epsilon", "noise": {"zero_snr": True}}, "write objective: v"),
        ({"drop": 0.0, "samples": {"guidance": 2.0}}, "drop is 0"),
        ({"condition": "none", "samples": {"guidance": 2.0}}, "condition is none"),
    ],
)
def test_settings_that_contradict_each_other(config: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        Config(**config)


class Still(nn.Module):
    """Says something of images that depends on all it is told."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.tensor(0.3))
        self.seen: list[Any] = []

    def forward(self, images: torch.Tensor, times: torch.Tensor, classes: torch.Tensor | None = None) -> torch.Tensor:
        self.seen.append((images, times, classes))
        said = self.weight * images + times.float()[:, None, None, None] / 5000
        return said if classes is None else said + classes[:, None, None, None] / 10


def call(network: nn.Module, images: torch.Tensor, times: torch.Tensor, told: Any) -> torch.Tensor:
    said: torch.Tensor = network(images, times, told.get("classes"))
    return said


def task(classes: tuple[str, ...] = ("a", "b", "c"), **config: Any) -> Diffusion:
    made = build(Config(**config), Facts.plain(classes, [1] * len(classes)))
    made.bind(Beside(call, 1, 4, (1, 4)), 5)
    return made


def batch(epochs: list[int], indices: list[int]) -> Batch:
    images = torch.stack([torch.full((1, 4, 4), index / 1000) for index in indices])
    labels = torch.tensor([index % 3 for index in indices])
    return Batch(images, labels, torch.tensor(indices), epochs=torch.tensor(epochs))


def test_a_batch_may_be_cut_anywhere() -> None:
    made, network = task(drop=0.5), Still()
    keys = ([0] * 40 + [3] * 20, list(range(40)) + list(range(20)))
    whole = made.losses(made.run(network, batch(*keys)), batch(*keys))["task"]
    parts = [batch(keys[0][a:b], keys[1][a:b]) for a, b in ((0, 1), (1, 17), (17, 60))]
    cut = torch.cat([made.losses(made.run(network, part), part)["task"] for part in parts])
    assert torch.equal(whole, cut)
    assert not torch.equal(whole[:20], whole[40:]), "another epoch, other noise"
    told = network.seen[0][2]
    assert 15 < int((told == 3).sum()) < 45, "half of the classes are not told"
    assert torch.equal(told[told != 3], batch(*keys).labels[told != 3])


def test_the_measure_sees_the_same_noise_and_every_part_of_the_time() -> None:
    made, network = task(draws=5), Still()
    measures = []
    for parts in ([range(12)], [range(0, 5), range(5, 12)]):
        measure = made.measure(12, torch.device("cpu"))
        for part in parts:
            measure.update(network, batch([0] * len(part), list(part)))
        measures.append(measure.result())
    assert measures[0].metrics["loss"] == pytest.approx(measures[1].metrics["loss"], abs=1e-9)
    assert measures[0].details["samples"] == 12
    assert all(value is not None for value in measures[0].details["loss_by_time"])
    times = torch.stack([seen[1] for seen in network.seen[:5]])
    assert (times // 200).tolist() == [[part] * 12 for part in range(5)]
    assert all(torch.equal(seen[2], batch([0] * 12, list(range(12))).labels) for seen in network.seen[:5]), "none is dropped"


UNET: dict[str, Any] = {
    "sample_size": 8, "in_channels": 1, "out_channels": 1, "block_out_channels": (8, 16), "layers_per_block": 1,
    "down_block_types": ("DownBlock2D", "DownBlock2D"), "up_block_types": ("UpBlock2D", "UpBlock2D"), "norm_num_groups": 4,
}  # fmt: skip


@pytest.mark.parametrize("sampler", ["ddpm", "ddim", "flow"])
def test_images_are_those_of_diffusers_pipelines(sampler: str) -> None:
    torch.manual_seed(2)
    network = diffusers.UNet2DModel(**UNET).eval()
    beside = Beside(lambda n, x, t, told: n(x, t, return_dict=False)[0], 1, 8, (1, 8))
    settings: Any = of(objective="flow" if sampler == "flow" else "v").settings
    made: Any
    if sampler == "flow":
        made = diffusers.DDPMPipeline(network, diffusers.FlowMatchEulerDiscreteScheduler.from_config(settings))
    elif sampler == "ddpm":
        made = diffusers.DDPMPipeline(network, diffusers.DDPMScheduler.from_config(settings))
    else:
        made = diffusers.DDIMPipeline(network, diffusers.DDIMScheduler.from_config(settings))
    made.set_progress_bar_config(disable=True)
    seeds = [3, 11, 12]
    given = [torch.Generator().manual_seed(seed) for seed in seeds]
    expected = made(batch_size=3, generator=given, num_inference_steps=7, output_type="np").images
    plan = Plan(settings, "auto" if sampler == "flow" else sampler, 7)
    found = sample(network, beside, plan, seeds, {}, None, torch.device("cpu"))
    assert torch.equal(found, torch.from_numpy(expected).permute(0, 3, 1, 2).mul(255).round().to(torch.uint8))
    assert len({image.numpy().tobytes() for image in found}) == 3


def test_guidance_goes_on_from_no_class_past_the_class() -> None:
    made, network = task(), Still()
    seeds = [1, 2]
    once = made.sample(network, seeds, [0, 2], made.plan())
    network.seen.clear()
    settings = Config().samples.model_copy(update={"guidance": 3.0, "steps": 4})
    twice = made.sample(network, seeds, [0, 2], made.plan(settings))
    assert [seen[2].tolist() for seen in network.seen] == [[0, 2], [3, 3]] * 4
    assert not torch.equal(once, twice)
    images, times, _ = network.seen[0]
    said = [0.3 * images + times.float()[:, None, None, None] / 5000 + torch.tensor(told)[:, None, None, None] / 10
            for told in ([0, 2], [3, 3])]  # fmt: skip
    made_of: Any = diffusers.DDIMScheduler.from_config(made.process.settings)
    made_of.set_timesteps(4)
    after = made_of.step(said[1] + 3 * (said[0] - said[1]), made_of.timesteps[0], images).prev_sample
    torch.testing.assert_close(network.seen[2][0], after)


@pytest.mark.filterwarnings("ignore:__array__ implementation:DeprecationWarning")  # of diffusers' own
def test_samplers_that_do_not_go_with_the_noise() -> None:
    with pytest.raises(UserError, match="the sampler ddim does not go with flow; write euler, heun, or auto"):
        task(objective="flow", samples={"sampler": "ddim"})
    with pytest.raises(UserError, match=r"task\.samples\.steps is 60, more than the 50 time steps"):
        task(noise={"steps": 50}, samples={"steps": 60})
    for sampler in ("dpm++", "unipc", "euler", "heun", "pndm"):
        made = task(objective="v", samples={"sampler": sampler, "steps": 5})
        assert made.sample(Still(), [0], [1], made.plan()).shape == (1, 1, 4, 4)
