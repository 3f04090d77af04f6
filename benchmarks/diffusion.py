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
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch.nn import functional

from benchmarks import loop, paired, results
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


def the_step(passes: int) -> tuple[list[str], dict[str, Any]]:
    """How many times the bare loop's time a step takes. Raises SystemExit where the weights are not the same."""
    runtime = loop.runtime()
    task = Diffusion(Config(condition="none"), (), ())
    batches = data()
    with tempfile.TemporaryDirectory() as folder:
        heart = Heartbeat(Path(folder), 0)
        one, other = bare(batches, task, of_keys, 2)[1].network, graft(batches, task, runtime, heart, 2)[1].network
        most = max(float((a - b).detach().abs().max()) for a, b in zip(one.parameters(), other.parameters(), strict=True))
        if most > 1e-5:
            raise SystemExit(f"the same noise gives weights that differ by {most:.2g}: the comparison would mean nothing")
        loops = {
            "the loop of an example": lambda: bare(batches, task)[0] / STEPS,
            "graft": lambda: graft(batches, task, runtime, heart)[0] / STEPS,
        }
        measured = paired.measure(loops, passes)
        heart.close()
    runtime.close()
    size = sum(p.numel() for p in one.parameters())
    what = f"UNet2DModel of {size:,} parameters, {SIZE} pixels, batch {BATCH}, 1 thread; same noise, weights within {most:.1g}."
    return [what, "", *paired.table(measured, "ms a step", scale=1e3)], {"seconds": measured.times}


@dataclass(frozen=True)
class Latents:
    """A training on latents: networks as diffusers describes them, pictures, and where."""

    vae: dict[str, Any]
    dit: dict[str, Any]
    size: int
    count: int
    batch: int
    epochs: int
    device: str = "cpu"
    train: dict[str, Any] = field(default_factory=dict)
    workers: int = 1


def _kinds(blocks: int) -> dict[str, Any]:
    return {
        "down_block_types": ["DownEncoderBlock2D"] * blocks,
        "up_block_types": ["UpDecoderBlock2D"] * blocks,
        "latent_channels": 4,
    }


_SIX = {"sample_size": 16, "num_layers": 6, "num_attention_heads": 4, "attention_head_dim": 32, "num_embeds_ada_norm": 8}
_XL = {"sample_size": 32, "num_layers": 28, "num_attention_heads": 16, "attention_head_dim": 72, "num_embeds_ada_norm": 8}
MEDIUM = Latents({**_kinds(3), "block_out_channels": [32, 64, 64], "norm_num_groups": 8}, _SIX, 64, 512, 32, 8)
SMALL = Latents({**_kinds(3), "block_out_channels": [8, 8, 8], "norm_num_groups": 4}, {**_SIX, "num_layers": 1}, 64, 32, 16, 2)
# the autoencoder of Stable Diffusion and DiT-XL/2 at 256 pixels
LARGE = Latents(
    {**_kinds(4), "block_out_channels": [128, 256, 512, 512], "layers_per_block": 2}, _XL, 256, 2048, 64, 4, "cuda",
    {"precision": "bf16", "compile": "auto"}, 8,
)  # fmt: skip


def pipeline(folder: Path, latents: Latents) -> None:
    """An autoencoder with random weights, and a transformer on its latents, as diffusers saves them."""
    import diffusers

    torch.manual_seed(0)
    kinds: Any = diffusers
    vae = kinds.AutoencoderKL(**latents.vae)
    dit = kinds.DiTTransformer2DModel(in_channels=4, out_channels=8, patch_size=2, **latents.dit)
    kinds.DiTPipeline(dit, vae, kinds.DDIMScheduler()).save_pretrained(folder)
    index = json.loads((folder / "model_index.json").read_text())
    index["id2label"] = {str(number): f"class-{number}" for number in range(8)}
    (folder / "model_index.json").write_text(json.dumps(index))


def trained(folder: Path, cache: str, latents: Latents) -> tuple[float, list[float], float]:
    """(seconds of the whole command, losses, seconds of an epoch after the first)."""
    run = {
        "name": cache, "task": {"kind": "diffusion", "vae": "pipeline", "samples": {"count": 0}},
        "model": {"source": f"diffusers:{folder}/pipeline", "adapt": {"image_size": latents.size}}, "strategy": {"kind": "full"},
        "data": {"train": f"folder:{folder}/pictures", "resize_to": latents.size, "cache": cache, "workers": latents.workers},
        "optimizer": {"kind": "adamw", "lr": 1e-4},
        "train": {"epochs": latents.epochs, "global_batch": latents.batch, "seed": 0, **latents.train},
        "parallel": {"device": latents.device, **({"threads": 1} if latents.device == "cpu" else {})}, "track": {"every": 1},
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


def the_latents(latents: Latents) -> tuple[list[str], dict[str, Any]]:
    """How much faster a run is whose latents are kept. Raises SystemExit where the losses are not the same."""
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        pipeline(folder / "pipeline", latents)
        pictures(folder / "pictures", latents.count)
        online, kept = trained(folder, "none", latents), trained(folder, "features", latents)
    differ = max(abs(a - b) for a, b in zip(online[1], kept[1], strict=True))
    if differ > 1e-4:
        raise SystemExit(f"the losses differ by {differ:.2g}: the comparison would mean nothing")
    each = latents.count / latents.batch
    lines = [
        f"{latents.count} JPEGs at {latents.size} pixels, {latents.epochs} epochs of {latents.batch}, a transformer of "
        f"{latents.dit['num_layers']} blocks on {latents.device}; {len(kept[1])} losses within {differ:.1g}; each run once.",
        "",
        "| | s an epoch after the first | steps a second | s, whole command |",
        "|---|---|---|---|",
        f"| latents kept | {kept[2]:.2f} | {each / kept[2]:.2f} | {kept[0]:.1f} |",
        f"| encoded anew | {online[2]:.2f} ({online[2] / kept[2]:.2f} times) | {each / online[2]:.2f} | {online[0]:.1f} |",
    ]
    return lines, {"kept": [kept[0], kept[2]], "online": [online[0], online[2]], "losses_differ": differ}


def main(argv: Sequence[str] | None = None) -> int:
    chosen = results.options("benchmarks.diffusion", __doc__, argv)
    again = results.command("benchmarks.diffusion", chosen)
    lines, figures = the_step(results.pick(chosen, 1, PAIRS, 20))
    sections = [results.Section("D1", "A step of diffusion", lines, "at most 1.03 of the bare loop", again, figures)]
    lines, figures = the_latents(SMALL if chosen.quick else MEDIUM)
    sections.append(results.Section("D2", "Latents kept", lines, "an epoch 1.3 times as fast", again, figures))
    return results.finish(sections, chosen)


if __name__ == "__main__":
    sys.exit(main())
