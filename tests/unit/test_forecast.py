"""The memory that `graft plan` foretells, beside what a training takes, and what fits which card."""

from __future__ import annotations

import json
import subprocess
import sys
from contextlib import nullcontext
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch.nn import functional

from launcher import memory_view
from tests.trainers import NETWORK, ROOT, run_file
from tests.unit.test_generators import latent_pipeline
from tests.unit.test_texts import text_pipeline
from trainer.config import UserError, load
from trainer.config.footprint import CARDS, GIB, Footprint, card, fit
from trainer.config.parallel import Parallel
from trainer.describe import describe, memory
from trainer.forecast import Forecast, prepare
from trainer.kept_by_cuda import LikeCuda
from trainer.ledger import Ledger, without_values
from trainer.propose import propose
from trainer.shortage import advice

DEEP = {"source": f"python:{NETWORK}:deep", "adapt": {"in_channels": 1, "image_size": 32}}
DDP = Parallel()
GRADUAL = "strategy={kind: gradual, every: 100 samples, limit: 2}"
# predicted and measured in the words of the benchmark, each in a process of its own: a measurement begins with nothing
MEASURE = """
import json, sys
from pathlib import Path
from benchmarks.memory import apart, measured, predicted
import trainer.forecast, trainer.session

for name in sys.argv[1:]:
    print(json.dumps([apart(predicted, Path(name))[0], apart(measured, Path(name))[0]]))
"""
# a branch that depends on numbers is followed as if they were 1; what has as many results as there are numbers cannot be
CHOOSY = """
import torch
from torch import nn

class Choosy(nn.Module):
    def __init__(self):
        super().__init__()
        self.head = nn.Linear(64, 5)

    def forward(self, x):
        y = x.flatten(1)
        return self.head(y * (1 + 0 * len(torch.nonzero(y.detach() > 0))))

def make():
    return Choosy()
"""


def forecast(path: Path, *overrides: str, gpu: bool = False) -> Forecast:
    return Forecast(prepare(load(path, list(overrides)), 1), gpu=gpu)


def test_it_is_what_a_training_takes(tmp_path: Path) -> None:
    train = {"steps": 2, "global_batch": 96, "micro_batch": 48}
    frozen = {"strategy": {"kind": "blocks", "last": 1}, "optimizer": {"kind": "sgd", "lr": 0.1, "momentum": 0.9}}
    files = [
        run_file(tmp_path / "full", model=DEEP, train=train),
        run_file(tmp_path / "mixed", model=DEEP, train={**train, "precision": "bf16", "ema": None, "clip": None}),
        run_file(tmp_path / "frozen", model=DEEP, train=train, **frozen),
    ]
    done = subprocess.run(
        [sys.executable, "-c", MEASURE, *map(str, files)], cwd=ROOT, capture_output=True, text=True, check=True, timeout=120
    )
    found = [json.loads(line) for line in done.stdout.splitlines()]
    assert len(found) == len(files)
    for foretold, measured in found:
        assert measured > 2 << 20
        assert foretold == pytest.approx(measured, rel=0.01)


def test_it_follows_precision_strategy_and_batch_and_changes_nothing(tmp_path: Path) -> None:
    path = run_file(tmp_path, model=DEEP)
    full = forecast(path)
    parts = full._parts
    before = {name: value.clone() for name, value in parts.phase.network.state_dict().items()}
    twelve, six, again = full(12, 24), full(6, 24), full(12, 24)
    assert (again.peak, again.apart, again.optimizer) == (twelve.peak, twelve.apart, twelve.optimizer), "nothing is left over"
    assert twelve.peak > 1.5 * six.peak - 2 * six.other > 0
    after = parts.phase.network.state_dict()
    assert all(torch.equal(after[name], value) for name, value in before.items())
    assert not parts.engine.optimizer.state
    assert all(p.grad is None for p in parts.phase.network.parameters())
    assert twelve.gradients == sum(p.nbytes for p in parts.phase.network.parameters()) == twelve.weights
    assert twelve.optimizer >= 2 * twelve.weights, "two moments, and counts"
    assert twelve.average >= twelve.weights

    def work(*overrides: str) -> int:
        return forecast(path, *overrides)(12, 24).at_peak["work"]

    plain = work()
    assert work("train.precision=bf16") < 0.7 * plain
    assert work("strategy={kind: head}", "data.cache=none") < 0.7 * plain
    assert work("train.checkpointing=true") < 0.9 * plain
    stages = forecast(path, GRADUAL)(12, 24)
    assert stages.stage == 200, "the stage in which most learns"
    assert stages.gradients > forecast(path, "strategy={kind: head}", "data.cache=none")(12, 24).gradients
    on_gpu = forecast(path, gpu=True)(12, 24)
    assert on_gpu.peak % 512 == 0
    assert on_gpu.other < twelve.other, "the images of the data set stay outside"


def test_what_is_compiled_is_never_said_to_fit(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = run_file(tmp_path, model=DEEP)

    def lacks(*overrides: str, gpu: bool = True) -> str:
        return forecast(path, *overrides, gpu=gpu)(12, 24).lacks

    assert lacks() == lacks("train.compile=auto", gpu=False) == "", "on a CPU `auto` compiles nothing"
    assert "train.compile" in lacks("train.compile=auto")
    assert "train.compile" in lacks("train.compile=blocks", gpu=False)
    assert lacks("train.compile=auto", "parallel.kind=zero3") == "", "which is never compiled"
    found = describe(load(path, ["train.compile=whole"]), cards=[card("80GiB")])["memory"]
    assert {one["answer"] for one in found["cards"]} == {"too close to say"}
    memory_view.memory(found)
    assert "not in it, so that nothing is sure to fit: what torch.compile's code keeps" in capsys.readouterr().out


MANY = """
from torch import nn

class Many(nn.Module):
    def __init__(self):
        super().__init__()
        self.layers = nn.Sequential(nn.Flatten(), *[nn.Linear(64, 64) for _ in range(16)])
        self.head = nn.Linear(64, 5)

    def forward(self, x):
        return self.head(self.layers(x))

def make():
    return Many()
"""


def test_a_gpu_steps_all_parameters_at_once_where_no_kernel_is_fused(tmp_path: Path) -> None:
    (tmp_path / "many.py").write_text(MANY)
    path = run_file(tmp_path, model={"source": f"python:{tmp_path}/many.py:make"})
    fused = forecast(path, gpu=True)(1, 1)
    for apart in ("train.fused=false", "optimizer={kind: torch, name: RAdam, lr: 0.001}"):
        assert forecast(path, apart, gpu=True)(1, 1).peak > fused.peak + fused.weights / 2, "room for all of them"


def test_what_a_generator_needs(tmp_path: Path) -> None:
    from tests.faults.test_diffusion import file

    def evaluation(folder: Path, path: Path, *overrides: str) -> int:
        found = forecast(path, "evaluate.batch=1", *overrides)(5, 24)
        assert found.peak > found.weights + found.optimizer + found.gradients
        return found.evaluation - found.weights - found.optimizer

    pixels, latents = tmp_path / "pixels", tmp_path / "latents"
    model = {"source": latent_pipeline(latents / "pipe"), "args": {}, "adapt": {"in_channels": 1}}
    for folder, path in (
        (pixels, file(pixels)), (latents, file(latents, model=model, task={"vae": "pipeline", "noise": {}}))
    ):  # fmt: skip
        few, many = (evaluation(folder, path, f"task.samples.batch={batch}") for batch in (8, 512))
        assert many > 8 * few > 0, "the images that are made at each evaluation lie in memory together"


def test_a_plan_reads_no_text_encoder(tmp_path: Path) -> None:
    """Its weights count, though they are not there; nothing is encoded; and the empty text of pairs is followed as well."""
    from tests.faults.test_repainting import file
    from tests.painter import photographs

    pipe = tmp_path / "pipe"
    source = text_pipeline(pipe, sample_size=8)
    held = sum(tensor.nbytes for tensor in load_file(pipe / "text_encoder" / "model.safetensors").values())
    (pipe / "text_encoder" / "model.safetensors").unlink()
    for name in ("train", "val"):
        photographs(tmp_path / name, 4, 0, 16)
    model = {"source": source, "adapt": {"in_channels": 1, "image_size": 16}}
    parts = prepare(load(file(tmp_path, tmp_path, model=model), ["task.vae=pipeline", "task.lpips=null"]), 1)
    assert parts.built.beside is not None
    assert parts.built.beside.text is not None
    network = parts.built.beside.text.network
    assert all(parameter.is_meta for parameter in network.parameters())
    found = Forecast(parts, gpu=False)(4, 12)
    vae = parts.built.beside.vae
    assert vae is not None
    assert found.other >= sum(p.nbytes for p in network.parameters()) + sum(p.nbytes for p in vae.network.parameters())
    assert sum(p.nbytes for p in network.parameters()) == held


def test_what_a_critic_needs(tmp_path: Path) -> None:
    from tests import painter
    from tests.faults.test_translate import file

    painter.photographs(tmp_path / "train", 8, 0)
    painter.photographs(tmp_path / "val", 4, 1)
    torch.manual_seed(0)
    save_file(painter.trunk(6).state_dict(), tmp_path / "features.safetensors")
    path = file(tmp_path, tmp_path)
    alone = forecast(path, "task.perceptual=null", "losses={}", "task.losses=[l1]", "task.adversary=null")(4, 8)
    both = forecast(path, "task.perceptual=null", "task.losses=[l1, adversarial]", "losses={weights: {adversarial: 0.1}}")(4, 8)
    critic = both.weights - alone.weights
    assert critic > 0
    assert both.optimizer - alone.optimizer == pytest.approx(2 * critic, rel=0.01), "Adam's two numbers of each"
    assert both.gradients - alone.gradients == critic


def test_blocks_that_are_recomputed_keep_less(tmp_path: Path) -> None:
    path = run_file(tmp_path, model=DEEP)
    whole, again = (forecast(path, f"train.checkpointing={each}")(24, 24) for each in ("false", "true"))
    assert again.peak < whole.peak
    assert (again.weights, again.optimizer, again.gradients) == (whole.weights, whole.optimizer, whole.gradients)


def test_what_a_generator_needs_that_is_given_a_picture(tmp_path: Path) -> None:
    """A first layer of twice the channels, and the network of LPIPS."""
    from diffusers import UNet2DModel

    from tests.faults.test_repainting import SIZE, UNET, file
    from tests.painter import photographs

    for name in ("train", "val"):
        photographs(tmp_path / name, 4, 0, SIZE)
    model = {"source": "diffusers:UNet2DModel", "args": UNET, "adapt": {"image_size": SIZE}}
    foretold = forecast(file(tmp_path, tmp_path, model=model))(4, 12)
    network = UNet2DModel(in_channels=6, out_channels=3, **UNET)
    assert foretold.weights == sum(parameter.nbytes for parameter in network.parameters())
    assert foretold.other > 2 * 10**6
    assert foretold.peak > foretold.weights + foretold.optimizer + foretold.gradients + foretold.other


def test_features_that_are_kept_need_less_and_a_first_pass(tmp_path: Path) -> None:
    path = run_file(tmp_path)
    still = ("strategy={kind: head}", "data.augment={crop: none, flip: 0.0}")
    kept = forecast(path, *still, "data.cache=features")(12, 24)
    assert kept.at_peak["work"] < forecast(path, *still, "data.cache=none")(12, 24).at_peak["work"] / 2
    assert kept.evaluation > kept.peak, "32 images through the whole network"


def test_a_network_that_cannot_be_followed_is_told_so(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "choosy.py").write_text(CHOOSY)
    path = run_file(tmp_path, model={"source": f"python:{tmp_path}/choosy.py:make"})
    found = describe(load(path, []))
    assert found["learning"] == 64 * 5 + 5
    assert not found["memory"]["foretold"]
    memory_view.memory(found["memory"])
    assert "memory: not foretold" in capsys.readouterr().out


def test_a_micro_batch_is_proposed_that_fits(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """The global batch is kept; what is proposed was followed itself."""
    path = run_file(tmp_path, model=DEEP, train={"global_batch": 4096})
    parts = prepare(load(path, []), 2)
    found = memory(parts, 2, [card("80GiB"), card("3.3GiB"), card("0.1GiB")])
    whole, roomy, none = found["proposed"]
    assert (found["share"], found["accumulation"], found["world"]) == (2048, 1, 2)
    assert (whole["micro_batch"], whole["accumulation"], whole["fit"]["answer"]) == (2048, 1, "fits")
    assert roomy["fit"]["answer"] == "fits"
    assert 1 < roomy["accumulation"] <= 8
    assert roomy["micro_batch"] * roomy["accumulation"] >= 2048 > roomy["micro_batch"] * (roomy["accumulation"] - 1)
    assert none["micro_batch"] is None
    assert none["fit"]["answer"] == "does not fit"
    memory_view.memory(found)
    shown = capsys.readouterr().out
    assert "on 80GiB: as it is (1 pass a step" in shown
    assert f"on 3.3GiB: train.micro_batch={roomy['micro_batch']}" in shown
    assert "on 0.1GiB: nothing is sure to fit, one sample: does not fit" in shown
    assert "not measured on a GPU" in shown


def made(**change: Any) -> Footprint:
    """Ten GiB of weights, as Adam has them."""
    sizes = {
        "weights": 10, "buffers": 0, "gradients": 10, "optimizer": 20, "average": 4, "other": 0, "peak": 54, "apart": 44,
        "evaluation": 39, "block": 1,
    }  # fmt: skip
    given: dict[str, Any] = {name: size * GIB for name, size in (sizes | change).items()}
    return Footprint(micro_batch=1, at_peak={}, stage=0, **given)


def test_the_largest_micro_batch_that_is_sure_to_fit_is_found_where_ranks_share(tmp_path: Path) -> None:
    """The one in two that needs 0.1 GiB less than there is, with all that is allowed for."""
    run = load(run_file(tmp_path), ["parallel.kind=zero2"])

    def followed(size: int, share: int) -> Footprint:
        grown = dict.fromkeys(("weights", "gradients", "optimizer", "average", "evaluation", "block"), 0)
        return replace(made(**grown, peak=10 + size, apart=10 + size), micro_batch=size)

    found = propose(run, followed, followed(16, 16), card("24.7GiB"), 4, 16)
    assert (found.micro_batch, found.accumulation, found.fit.high) == (8, 2, round(24.6 * GIB))


def test_more_gpus_are_proposed_by_the_kinds_that_the_run_can_take(tmp_path: Path) -> None:
    path = run_file(tmp_path, train={"global_batch": 4096})

    def shared(*overrides: str, world: int = 1) -> dict[str, int]:
        run = load(path, list(overrides))
        return propose(run, lambda size, share: made(), made(), card("40GiB"), world, 1).shared

    assert shared() == {"zero2": 4, "zero3": 4, "fsdp": 4}, "zero1 takes too little away"
    assert shared("train.checkpointing=true") == {"zero2": 4, "fsdp": 4}
    assert shared("optimizer={kind: prodigy}") == {}
    assert shared("train.global_batch=3") == {}, "a rank without a sample"
    assert shared(world=2048) == {"zero2": 2048, "zero3": 2048, "fsdp": 2048}


def test_never_that_it_fits_where_it_may_not() -> None:
    found = made()
    answers = [fit(found, card(f"{gib}GiB"), DDP, 1).answer for gib in (51, 52, 61.3, 61.5)]
    assert answers == ["does not fit", "too close to say", "too close to say", "fits"]
    assert fit(replace(found, lacks="a judge"), card("80GiB"), DDP, 1).answer == "too close to say"
    assert fit(found, card("61.5GiB"), DDP, 2).answer == "too close to say", "messages need room"
    assert found.rank(DDP, 1) == 54 * GIB
    assert made(evaluation=60).rank(DDP, 1) == 60 * GIB


def test_what_is_shared_out_kept_whole_or_left_on_the_host() -> None:
    found = made()
    bucket = 2e9 / GIB

    def rank(kind: Any, world: int = 4, **more: Any) -> float:
        return found.rank(Parallel(kind=kind, **more), world) / GIB

    zero = [rank(kind) for kind in ("ddp", "zero1", "zero2", "zero3")]
    assert zero == pytest.approx([54, 36 + bucket, 28.5 + bucket, 21 + bucket + 2], abs=1e-6)
    assert rank("fsdp") == 23
    assert rank("fsdp", reshard_after_forward=False) == 31, "the pieces, and all of them put together"
    assert rank("zero2", offload="cpu") == pytest.approx(23.5 + bucket, abs=1e-6)
    assert rank("fsdp", offload="cpu") == 15.5
    assert rank("zero2", 1) == 54, "one rank is as under ddp"
    assert rank("zero2", 1, offload="cpu") == pytest.approx(34 + bucket, abs=1e-6)
    assert replace(found, buffers=2 * GIB).rank(Parallel(kind="zero1"), 4) > found.rank(Parallel(kind="zero1"), 4)
    least = fit(found, card("80GiB"), Parallel(kind="fsdp", offload="cpu"), 4).low
    assert least < 0.9 * 15.5 * GIB, "the gradients may be on the host as well"


SINGLE = """
import torch
from torch import nn

class Scaled(nn.Module):
    def __init__(self):
        super().__init__()
        self.scale = nn.Parameter(torch.tensor(1.0))
        self.head = nn.Linear(64, 5)

    def forward(self, x):
        return self.head(x.flatten(1)) * self.scale

def make():
    return Scaled()
"""


def test_a_plan_refuses_what_a_training_of_so_many_ranks_refuses(tmp_path: Path) -> None:
    (tmp_path / "scaled.py").write_text(SINGLE)
    run = load(run_file(tmp_path, model={"source": f"python:{tmp_path}/scaled.py:make"}), ["parallel.kind=fsdp"])
    found = describe(run, world=1)["memory"]
    assert (found["kind"], found["rank"]) == ("ddp", max(found["footprint"]["peak"], found["footprint"]["evaluation"]))
    with pytest.raises(UserError, match="fsdp cannot cut 'scale' of the network, which is one number"):
        describe(run, world=2)


def test_cards_by_name() -> None:
    assert card("H100") == CARDS["h100"]
    assert card("nvidia_a100_40").gib < 40
    assert card("a100") == CARDS["a100-40"], "the smaller of two"
    assert card("24GiB").gib == 24
    with pytest.raises(UserError, match="did you mean 'h100'"):
        card("h10")
    with pytest.raises(UserError, match="write a number of GiB"):
        card("manyGiB")


def test_as_on_a_gpu_dropout_keeps_bytes_and_normalisation_whole_numbers() -> None:
    """Counted against what a CPU keeps: a mask of 8 bits a number, no weights of attention, 32 bits after normalising."""
    linear, norm, drop = torch.nn.Linear(64, 64), torch.nn.LayerNorm(64), torch.nn.Dropout(0.1)
    numbers = 64 * 64 * 64

    def kept(step: Any, like: bool) -> int:
        ledger = Ledger(without_values(), gpu=True)
        x = torch.empty(64, 64, 64, requires_grad=True)
        with ledger, LikeCuda(True) if like else nullcontext(), torch.autocast("cpu", torch.bfloat16):
            y = step(linear(x))
            assert y.shape[0] == 64
            return ledger.now["work"]

    def attend(y: torch.Tensor) -> torch.Tensor:
        return functional.scaled_dot_product_attention(y[:, None], y[:, None], y[:, None], None, 0.1)

    assert kept(drop, False) - kept(drop, True) == numbers, "two bytes, or one"
    assert kept(norm, True) - kept(norm, False) >= 2 * numbers
    assert kept(attend, True) < kept(attend, False) / 2


def test_an_allocation_that_fails_on_a_cpu_is_explained() -> None:
    with pytest.raises(RuntimeError) as failed:
        torch.empty(1 << 60, dtype=torch.uint8)
    assert "lower data.workers or train.micro_batch" in (advice(failed.value) or "")
    assert advice(RuntimeError("something else")) is None
