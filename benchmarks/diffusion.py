"""What a step of the task diffusion costs, and what kept latents save: `python -m benchmarks.diffusion` (about six minutes).

The step: a UNet of diffusers in the loop that its examples write by hand (noise and time drawn by torch's generator, `add_noise`
of the scheduler, squared error, clipping, AdamW), and the same network through graft's task and loop, with the noise of every
sample a function of its key. Interleaved (A B B A) after a warm-up, beside a control of the bare loop with itself. Before that
two steps of both with the same noise must give the same weights to 1e-5, a twentieth of what those steps change.

The latents: two `graft train` commands of a small autoencoder and a transformer on its latents, with `data.cache: none` and
`features`; their losses must be equal.
"""

from __future__ import annotations

import itertools
import json
import os
import platform
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from statistics import median
from typing import Any

import torch
from torch.nn import functional

from benchmarks import loop
from benchmarks.frozen import pictures
from trainer.config.model import Model
from trainer.config.tasks.diffusion import Config
from trainer.data import Batch
from trainer.loop import train
from trainer.losses.objective import Plain
from trainer.models import Built, build_model
from trainer.progress import Progress
from trainer.runtime import Runtime
from trainer.spec import ParamGroup
from trainer.tasks import draws
from trainer.tasks.base import Phase
from trainer.tasks.diffusion import NOISE, TIMES, Diffusion
from trainer.watch import Heartbeat

ROOT = Path(__file__).resolve().parents[1]
STEPS, BATCH, SIZE, LR, CLIP, PAIRS = 12, 16, 32, 1e-4, 1.0, 10
UNET = {
    "block_out_channels": [32, 64], "down_block_types": ["DownBlock2D", "AttnDownBlock2D"],
    "up_block_types": ["AttnUpBlock2D", "UpBlock2D"], "layers_per_block": 1, "norm_num_groups": 8,
}  # fmt: skip


def built(task: Diffusion) -> Built:
    """The network as graft builds it, the same every time."""
    config = Model.model_validate(
        {"source": "diffusers:UNet2DModel", "weights": "none", "args": UNET, "adapt": {"in_channels": 3, "image_size": SIZE}}
    )
    found = build_model(config, "half", task.generator, 0)
    assert found.beside is not None
    task.bind(found.beside, 0)
    found.network.train()
    return found


def data() -> list[Batch]:
    generator = torch.Generator().manual_seed(1)
    return [
        Batch(
            torch.rand(BATCH, 3, SIZE, SIZE, generator=generator) * 2 - 1, torch.zeros(BATCH, dtype=torch.int64),
            torch.arange(BATCH) + BATCH * place, epochs=torch.zeros(BATCH, dtype=torch.int64),
        )
        for place in range(8)
    ]  # fmt: skip


Draw = Callable[[Batch], tuple[torch.Tensor, torch.Tensor]]


def of_torch(batch: Batch) -> tuple[torch.Tensor, torch.Tensor]:
    return torch.randn(batch.images.shape), torch.randint(0, 1000, (len(batch.images),))


def of_keys(batch: Batch) -> tuple[torch.Tensor, torch.Tensor]:
    """What graft's task draws."""
    place = batch.epochs, batch.indices
    times = (draws.uniform(draws.keys(0, TIMES, *place)) * 1000).long()
    return draws.normal(draws.keys(0, NOISE, *place), batch.images.shape[1:]), times


def bare(batches: list[Batch], task: Diffusion, draw: Draw = of_torch, steps: int = STEPS) -> tuple[float, Built]:
    """The loop of an example: seconds, and the trained network."""
    from diffusers import DDPMScheduler

    found = built(task)
    model: Any = found.network
    scheduler: Any = DDPMScheduler()
    optimizer = torch.optim.AdamW(model.parameters(), lr=LR)
    began = time.perf_counter()
    for _, batch in zip(range(steps), itertools.cycle(batches), strict=False):
        noise, times = draw(batch)
        said = model(scheduler.add_noise(batch.images, noise, times), times).sample
        loss = functional.mse_loss(said.float(), noise)
        loss.backward()  # type: ignore[no-untyped-call]
        torch.nn.utils.clip_grad_norm_(model.parameters(), CLIP)
        optimizer.step()
        optimizer.zero_grad()
    return time.perf_counter() - began, found


def graft(
    batches: list[Batch], task: Diffusion, runtime: Runtime, heart: Heartbeat, steps: int = STEPS
) -> tuple[float, Built]:  # fmt: skip
    """The same through the task and the loop of graft, with all their checks."""
    found = built(task)
    model = found.network
    groups = [ParamGroup(list(model.named_parameters()))]
    engine = runtime.engine(model, model, groups, lambda given: torch.optim.AdamW(model.parameters(), lr=LR))
    batched = ([batch] for batch in itertools.cycle(batches))
    phases = [Phase("model", model, engine, Plain(task))]
    job = loop.job(runtime, phases, batched, heart.at, steps=steps, batch=BATCH, clip=CLIP)
    began = time.perf_counter()
    assert train(job, Progress())
    return time.perf_counter() - began, found


def ratios(values: list[float]) -> str:
    ordered = sorted(values)
    return f"median {median(ordered):.3f}, quartiles {ordered[len(ordered) // 4]:.3f} to {ordered[-len(ordered) // 4]:.3f}"


def the_step() -> None:
    """Print how many times the bare loop's time a step takes."""
    runtime = loop.runtime()
    task = Diffusion(Config(condition="none"), (), ())
    batches = data()
    with tempfile.TemporaryDirectory() as folder:
        heart = Heartbeat(Path(folder), 0)
        one, other = bare(batches, task, of_keys, 2)[1].network, graft(batches, task, runtime, heart, 2)[1].network
        most = max(float((a - b).detach().abs().max()) for a, b in zip(one.parameters(), other.parameters(), strict=True))
        if most > 1e-5:
            raise SystemExit(f"the same noise gives weights that differ by {most:.2g}: the comparison would mean nothing")
        difference, control, plain = [], [], []
        for _ in range(PAIRS):
            a1, b1 = bare(batches, task)[0], graft(batches, task, runtime, heart)[0]
            b2, a2 = graft(batches, task, runtime, heart)[0], bare(batches, task)[0]
            difference += [b1 / a1, b2 / a2]
            control.append(a2 / a1)
            plain += [a1 / STEPS, a2 / STEPS]
        heart.close()
    runtime.close()
    size = sum(p.numel() for p in one.parameters())
    print(f"UNet2DModel of {size:,} parameters, {SIZE} pixels, batch {BATCH}, 1 thread: bare {median(plain) * 1e3:.1f} ms a step")
    print(f"graft over bare: {ratios(difference)} (goal at most 1.03); weights with the same noise within {most:.1g}")
    print(f"bare over bare (control): {ratios(control)}", flush=True)


def pipeline(folder: Path) -> None:
    """A small autoencoder with random weights, and a transformer on its latents, as diffusers saves them."""
    import diffusers

    torch.manual_seed(0)
    kinds: Any = diffusers
    vae = kinds.AutoencoderKL(
        block_out_channels=[32, 64, 64], down_block_types=["DownEncoderBlock2D"] * 3, up_block_types=["UpDecoderBlock2D"] * 3,
        latent_channels=4, norm_num_groups=8, layers_per_block=1,
    )  # fmt: skip
    dit = kinds.DiTTransformer2DModel(
        in_channels=4, out_channels=8, sample_size=16, num_embeds_ada_norm=8, num_layers=6, num_attention_heads=4,
        attention_head_dim=32, patch_size=2,
    )  # fmt: skip
    kinds.DiTPipeline(dit, vae, kinds.DDIMScheduler()).save_pretrained(folder)
    index = json.loads((folder / "model_index.json").read_text())
    index["id2label"] = {str(number): f"class-{number}" for number in range(8)}
    (folder / "model_index.json").write_text(json.dumps(index))


def trained(folder: Path, cache: str, epochs: int) -> tuple[float, list[float], float]:
    """(seconds of the whole command, losses, seconds of an epoch after the first)."""
    run = {
        "name": cache, "task": {"kind": "diffusion", "vae": "pipeline", "samples": {"count": 0}},
        "model": {"source": f"diffusers:{folder}/pipeline", "adapt": {"image_size": 64}}, "strategy": {"kind": "full"},
        "data": {"train": f"folder:{folder}/pictures", "resize_to": 64, "cache": cache, "workers": 1},
        "optimizer": {"kind": "adamw", "lr": 1e-4}, "train": {"epochs": epochs, "global_batch": 32, "seed": 0},
        "parallel": {"device": "cpu", "threads": 1}, "track": {"every": 1},
    }  # fmt: skip
    file = folder / f"{cache}.yaml"
    file.write_text(json.dumps(run), encoding="utf-8")
    words = [sys.executable, "-m", "launcher", "train", str(file), "--runs", str(folder / "runs")]
    began = time.perf_counter()
    done = subprocess.run(
        words, cwd=ROOT, env={**os.environ, "XDG_CACHE_HOME": str(folder / "cache")}, capture_output=True, text=True, check=False
    )
    took = time.perf_counter() - began
    if done.returncode:
        raise SystemExit(f"{' '.join(words)} ended with {done.returncode}\n{done.stderr[-2000:]}")
    points = [json.loads(line) for line in (folder / "runs" / cache / "metrics.jsonl").read_text().splitlines()]
    ends = [p["time"] for p in points if "train/epoch_loss" in p]
    return took, [p["train/loss"] for p in points if "train/loss" in p], (ends[-1] - ends[0]) / (len(ends) - 1)


def the_latents(epochs: int = 8) -> None:
    """Print how much faster a run is whose latents are kept."""
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        pipeline(folder / "pipeline")
        pictures(folder / "pictures", 512)
        online, kept = trained(folder, "none", epochs), trained(folder, "features", epochs)
    differ = max(abs(a - b) for a, b in zip(online[1], kept[1], strict=True))
    print(f"512 JPEGs at 64 pixels, {epochs} epochs of 32, autoencoder and transformer of six blocks")
    print(
        f"latents kept: an epoch {kept[2]:.2f} s, encoded anew {online[2]:.2f} s: {online[2] / kept[2]:.2f} times (goal 1.3); "
        f"whole commands {kept[0]:.1f} and {online[0]:.1f} s; {len(kept[1])} losses within {differ:.1g}"
    )
    if differ > 1e-4:
        raise SystemExit("the losses are not equal: the comparison means nothing")


def main() -> int:
    print(f"torch {torch.__version__}, {platform.machine()}, {os.cpu_count()} cores")
    the_step()
    the_latents()
    return 0


if __name__ == "__main__":
    sys.exit(main())
