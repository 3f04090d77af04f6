"""On one GPU: training from memory, kept latents of a DiT-XL/2, and 10 GB of state: `python -m benchmarks.gpu`.

G1: ViT-B/16, ResNet-50 and ConvNeXt-B in bf16, compiled whole, batches on the GPU: a bare loop, graft's, the step of timm's
train.py, the Hugging Face Trainer and Lightning, all with one network, memory format, fused AdamW and clipping. G3: trainings
with latents kept and encoded anew. G5: a checkpoint every 100 steps. `--tiny` runs the same code on a CPU with small networks
and shows only that it works.
"""

from __future__ import annotations

import argparse
import itertools
import logging
import sys
import tempfile
import time
import warnings
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import nn
from torch.nn import functional
from torch.utils.data import DataLoader, Dataset

from benchmarks import checkpoint, diffusion, loop, paired, peers, results
from trainer.data import Batch
from trainer.loop import train
from trainer.progress import Progress
from trainer.spec import ParamGroup
from trainer.tasks.base import Phase
from trainer.watch import Heartbeat

CLASSES, LR, CLIP = 1000, 1e-4, 1.0
NETWORKS = {"vit_b_16": (224, 256), "resnet50": (224, 256), "convnext_base": (224, 128)}  # pixels, batch
PEAKS = {"H100": 989e12, "H200": 989e12, "A100": 312e12}  # dense bf16, operations a second, from the makers' data sheets


@dataclass
class Work:
    """Steps of a network on batches that are on the device; a step is timed from the end of the warm-up to the last."""

    name: str
    device: torch.device
    size: int
    batch: int
    steps: int
    warm: int
    compile: bool
    marks: list[float] = field(default_factory=list)
    losses: list[torch.Tensor] = field(default_factory=list)

    def __post_init__(self) -> None:
        generator = torch.Generator().manual_seed(1)
        shape = self.batch, 3, self.size, self.size
        self.batches = [
            Batch(
                torch.randn(shape, generator=generator).to(self.device, memory_format=torch.channels_last),
                torch.randint(CLASSES, (self.batch,), generator=generator).to(self.device),
                torch.arange(self.batch),
            )
            for _ in range(4)
        ]

    def network(self) -> nn.Module:
        import torchvision

        torch.manual_seed(0)
        if self.name == "tiny":
            model: Any = nn.Sequential(
                nn.Conv2d(3, 8, 4, 4), nn.ReLU(), nn.Flatten(), nn.Linear(8 * (self.size // 4) ** 2, CLASSES)
            )
        else:
            model = torchvision.models.get_model(self.name, weights=None)
        plain: nn.Module = model.to(self.device, memory_format=torch.channels_last)
        return plain

    def compiled(self, model: nn.Module) -> Any:
        return torch.compile(model) if self.compile else model

    def optimizer(self, model: nn.Module) -> torch.optim.Optimizer:
        return torch.optim.AdamW(model.parameters(), lr=LR, fused=True)

    def loss(self, model: Any, images: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
        """Of each sample."""
        step = len(self.losses)
        if step in (self.warm, self.steps - 1):
            if self.device.type == "cuda":
                torch.cuda.synchronize()
            self.marks.append(time.perf_counter())
        each = functional.cross_entropy(model(images).float(), labels, reduction="none")
        self.losses.append(each.detach().mean())
        return each

    def seconds(self, run: Callable[[Work], None]) -> float:
        """Of an image."""
        self.marks, self.losses = [], []
        run(self)
        assert len(self.losses) == self.steps, f"{len(self.losses)} steps instead of {self.steps}"
        return (self.marks[1] - self.marks[0]) / (self.steps - 1 - self.warm) / self.batch


def bare(work: Work) -> None:
    model = work.network().train()
    called, optimizer = work.compiled(model), work.optimizer(model)
    for _, batch in zip(range(work.steps), itertools.cycle(work.batches), strict=False):
        with torch.autocast(work.device.type, torch.bfloat16):
            loss = work.loss(called, batch.images, batch.labels).mean()
        loss.backward()  # type: ignore[no-untyped-call]
        torch.nn.utils.clip_grad_norm_(model.parameters(), CLIP)
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)


def graft(work: Work) -> None:
    runtime = loop.runtime(device=work.device.type, precision="bf16", compile="whole" if work.compile else "none")
    model = work.network()
    groups = [ParamGroup(list(model.named_parameters()))]
    engine = runtime.engine(model, model, groups, lambda given: work.optimizer(model))
    batches = ([batch] for batch in itertools.cycle(work.batches))

    def loss(module: nn.Module, batch: Batch) -> torch.Tensor:
        return work.loss(module, batch.images, batch.labels)

    with tempfile.TemporaryDirectory() as folder:
        heart = Heartbeat(Path(folder), 0)
        phases = [Phase("model", model, engine, loss)]
        assert train(loop.job(runtime, phases, batches, heart.at, steps=work.steps, batch=work.batch, clip=CLIP), Progress())
        heart.close()
    runtime.close()


def timm(work: Work) -> None:
    """The step of its train.py: autocast, backward, its clipping, step, and its meter of the loss on the last batch."""
    import timm.utils as utils

    kinds: Any = utils
    model = work.network().train()
    called, optimizer, meter = work.compiled(model), work.optimizer(model), kinds.AverageMeter()
    for step, batch in zip(range(work.steps), itertools.cycle(work.batches), strict=False):
        with torch.autocast(work.device.type, torch.bfloat16):
            loss = work.loss(called, batch.images, batch.labels).mean()
        loss.backward()  # type: ignore[no-untyped-call]
        kinds.dispatch_clip_grad(model.parameters(), value=CLIP, mode="norm")
        optimizer.step()
        optimizer.zero_grad()
        if step % 50 == 49:  # its --log-interval
            meter.update(loss.item(), len(batch.images))


class Ready(Dataset[Any]):
    """Batches as samples."""

    def __init__(self, work: Work) -> None:
        self._batches = [{"images": batch.images, "labels": batch.labels} for batch in work.batches]

    def __len__(self) -> int:
        return len(self._batches)

    def __getitem__(self, index: int) -> Any:
        return self._batches[index]


def hugging_face(work: Work) -> None:
    from transformers import PrinterCallback, Trainer, TrainingArguments

    class Ours(Trainer):  # type: ignore[misc]
        def compute_loss(self, model: Any, inputs: Any, *_: Any, **__: Any) -> Any:
            with self.compute_loss_context_manager():
                return work.loss(model, inputs["images"], inputs["labels"]).mean()

        def _get_train_sampler(self, *_: Any) -> Any:
            return torch.utils.data.SequentialSampler(Ready(work))

    model = work.network()
    with tempfile.TemporaryDirectory() as folder:
        settings = TrainingArguments(
            folder, max_steps=work.steps, per_device_train_batch_size=1, max_grad_norm=CLIP, bf16=True,
            torch_compile=work.compile, use_cpu=work.device.type == "cpu", save_strategy="no", report_to="none",
            disable_tqdm=True,
            remove_unused_columns=False, dataloader_pin_memory=False, lr_scheduler_type="constant",
        )  # fmt: skip
        trainer = Ours(
            model=model, args=settings, train_dataset=Ready(work), data_collator=lambda items: items[0],
            optimizers=(work.optimizer(model), None),
        )  # fmt: skip
        trainer.remove_callback(PrinterCallback)
        trainer.train()


def lightning(work: Work) -> None:
    import lightning as library

    logging.getLogger("lightning.pytorch").setLevel(logging.ERROR)
    kinds: Any = library

    class Module(kinds.LightningModule):  # type: ignore[misc]
        def __init__(self) -> None:
            super().__init__()
            self.network = work.network()
            self.called = [work.compiled(self.network)]  # in a list: it has the same parameters

        def training_step(self, batch: Any, _: int) -> Any:
            loss = work.loss(self.called[0], batch["images"], batch["labels"]).mean()
            self.log("train/loss", loss)
            return loss

        def configure_gradient_clipping(self, optimizer: Any, **_: Any) -> None:
            torch.nn.utils.clip_grad_norm_(self.parameters(), CLIP)  # its own refuses fused optimizers

        def configure_optimizers(self) -> Any:
            return work.optimizer(self.network)

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        kinds.Trainer(
            accelerator="gpu" if work.device.type == "cuda" else "cpu", devices=1, max_steps=work.steps, precision="bf16-mixed",
            logger=False, enable_checkpointing=False, enable_progress_bar=False, enable_model_summary=False,
        ).fit(Module(), DataLoader(Ready(work), batch_size=None))  # fmt: skip


LOOPS: dict[str, Callable[[Work], None]] = {
    "bare loop": bare, "graft": graft, "timm's step": timm, "Hugging Face Trainer": hugging_face, "Lightning": lightning,
}  # fmt: skip


def operations(work: Work) -> int:
    """Of a training step on one image."""
    from torch.utils.flop_counter import FlopCounterMode

    model = work.network().to("meta").train()
    with FlopCounterMode(display=False) as counter:
        model(torch.empty(2, 3, work.size, work.size, device="meta")).sum().backward()
    return int(counter.get_total_flops()) // 2


def throughput(work: Work, passes: int, command: str) -> results.Section:
    """G1 of one network. Raises SystemExit where a contestant's losses are others."""
    from accelerate.state import AcceleratorState

    curves: dict[str, float] = {}

    def timed(name: str) -> float:
        AcceleratorState._reset_state(
            reset_partial_state=True
        )  # one precision a process, which Trainer and graft set differently
        taken = work.seconds(LOOPS[name])
        loss = torch.stack(work.losses).float().mean().item()
        if abs(loss / curves.setdefault("bare loop", loss) - 1) > 0.02:
            raise SystemExit(f"{name} has a mean loss of {loss:.4f}, the bare loop {curves['bare loop']:.4f}: no comparison")
        return taken

    measured = paired.measure({name: lambda name=name: timed(name) for name in LOOPS}, passes)  # type: ignore[misc]
    each = operations(work)
    card = torch.cuda.get_device_name() if work.device.type == "cuda" else ""
    peak = next((value for name, value in PEAKS.items() if name in card), None)
    lines = [f"{work.size} pixels, batch {work.batch}, bf16{', compiled' * work.compile}, {work.steps} steps.", ""]
    lines += [*paired.table(measured, "us an image", scale=1e6), ""]
    for name, values in measured.times.items():
        rate = 1 / paired.Spread.of(values).median
        share = f", {each * rate / peak:.1%} of the card's {peak / 1e12:.0f} TFLOP/s" if peak else ""
        lines.append(f"- {name}: {rate:,.0f} images a second{share}")
    goal = "0.99 of the bare loop; ViT-B/16 40% of the card"
    return results.Section("G1", f"{work.name} from memory", lines, goal, command, {"seconds": measured.times})


def main(argv: Sequence[str] | None = None) -> int:
    def more(parser: argparse.ArgumentParser) -> None:
        parser.add_argument("--tiny", action="store_true", help="small networks on a CPU: shows that the code runs")

    chosen = results.options("benchmarks.gpu", __doc__, argv, more)
    if not chosen.tiny and not torch.cuda.is_available():
        raise SystemExit(
            "there is no GPU that torch can use here: these measurements need one; --tiny shows on a CPU that they run"
        )
    peers.within("benchmarks.gpu", "accelerate", "transformers", "lightning", "timm")
    command = results.command("benchmarks.gpu", chosen) + " --tiny" * chosen.tiny
    passes = results.pick(chosen, 1, 3, 20)
    sections = []
    device = torch.device("cpu" if chosen.tiny else "cuda")
    networks = {"tiny": (32, 8)} if chosen.tiny else NETWORKS
    for name, (size, batch) in networks.items():
        steps, warm = (12, 4) if chosen.tiny else (120, 20)
        work = Work(name, device, size, batch, steps, warm, compile=not chosen.tiny)
        sections.append(throughput(work, 1 if chosen.tiny else passes, command))
    latents = diffusion.SMALL if chosen.tiny else diffusion.LARGE
    lines, figures = diffusion.the_latents(latents)
    sections.append(results.Section("G3", "Latents kept", lines, "1.35 times over encoding online", command, figures))
    training = checkpoint.Training(64, 4, device) if chosen.tiny else checkpoint.Training(4096, 50, device)
    names = ("graft", "dcp.save", "dcp.async_save")
    goal = "held up 50 ms, steps at most 2% slower"
    sections.append(checkpoint.compare(training, 100, 1 if chosen.tiny else passes, names, "G5", goal, command))
    return results.finish(sections, chosen)


if __name__ == "__main__":
    sys.exit(main())
