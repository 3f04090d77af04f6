"""A head on a frozen ResNet-18 at 224 pixels: whole commands, with features kept, without, and the Hugging Face Trainer.

`python -m benchmarks.frozen` (`--full`: 512 images and 30 epochs, ten minutes to half an hour on two cores). The same weights,
pixels, order of samples, optimizer, schedule and clipping in all; every loss is compared.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from benchmarks import results

ROOT = Path(__file__).resolve().parents[1]
CLASSES, BATCH, LR = 8, 64, 1e-3


def pictures(root: Path, count: int) -> None:
    """JPEG files of 320 x 256 pixels, each a smooth random field tinted by its class."""
    import numpy as np
    from PIL import Image

    rng = np.random.default_rng(0)
    for place in range(count):
        kind = place % CLASSES
        small = rng.integers(0, 256, (8, 10, 3), dtype=np.uint8)
        small[..., kind % 3] //= 2 + kind
        path = root / f"class-{kind}" / f"{place:05d}.jpg"
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(small).resize((320, 256), Image.Resampling.BICUBIC).save(path, quality=90)


def weights(path: Path) -> None:
    """A ResNet-18 with random weights and a head of the task's classes."""
    import torch
    import torchvision

    torch.manual_seed(0)
    torch.save(torchvision.models.resnet18(weights=None, num_classes=CLASSES).state_dict(), path)


def run_file(folder: Path, epochs: int) -> Path:
    run = {
        "name": "run",
        "model": {"source": "torchvision:resnet18", "weights": str(folder / "weights.pt"), "adapt": {"head": "keep"}},
        "strategy": {"kind": "head"},
        "data": {"train": f"folder:{folder}/pictures", "resize_to": 224, "normalize": "imagenet", "interpolation": "bilinear"},
        "optimizer": {"kind": "adamw", "lr": LR, "weight_decay": 0.0},
        "schedule": {"kind": "linear"},
        "train": {"epochs": epochs, "global_batch": BATCH, "clip": 1.0},
        "parallel": {"device": "cpu"},
        "track": {"every": 1},
    }
    path = folder / "run.yaml"
    path.write_text(json.dumps(run), encoding="utf-8")
    return path


def graft(run: Path, cache: str, name: str) -> tuple[float, list[float], float]:
    """(seconds of the whole command, losses, seconds of an epoch after the first) of one run."""
    folder = run.parent
    words = ["train", str(run), f"data.cache={cache}", f"name={name}", "--runs", str(folder / "runs")]
    began = time.perf_counter()
    command(["-m", "launcher", *words], {"XDG_CACHE_HOME": str(folder / "cache"), "PYTHONPATH": str(ROOT)})
    took = time.perf_counter() - began
    points = [json.loads(line) for line in (folder / "runs" / name / "metrics.jsonl").read_text().splitlines()]
    ends = [p["time"] for p in points if "train/epoch_loss" in p]
    return took, [p["train/loss"] for p in points if "train/loss" in p], (ends[-1] - ends[0]) / (len(ends) - 1)


def command(words: list[str], environment: dict[str, str]) -> None:
    done = subprocess.run(
        [sys.executable, *words], env={**os.environ, **environment}, capture_output=True, text=True, check=False, cwd=ROOT
    )
    if done.returncode != 0:
        raise SystemExit(f"{' '.join(words)} failed:\n{done.stderr[-3000:]}")


def order(count: int, epochs: int) -> list[list[int]]:
    """The samples of each epoch as graft takes them, in the order of its listing."""
    from trainer.data.order import Order

    whole = Order(count, 0)
    return [[index for _, index in whole.slice(epoch * count, (epoch + 1) * count)] for epoch in range(epochs)]


def hugging_face(folder: Path, epochs: int) -> tuple[float, list[float], float]:
    """The same by the Hugging Face Trainer, in a process of its own."""
    files = sorted((folder / "pictures").glob("*/*.jpg"))
    told = {
        "files": [str(file) for file in files], "labels": [int(file.parent.name[6:]) for file in files],
        "order": order(len(files), epochs), "weights": str(folder / "weights.pt"), "out": str(folder / "hf"), "epochs": epochs,
    }  # fmt: skip
    (folder / "hf.json").write_text(json.dumps(told), encoding="utf-8")
    began = time.perf_counter()
    command(["-m", "benchmarks.frozen", "--hf", str(folder / "hf.json")], {"PYTHONPATH": str(ROOT)})
    took = time.perf_counter() - began
    result = json.loads((folder / "hf" / "result.json").read_text())
    return took, result["losses"], result["epoch"]


def by_trainer(told: dict[str, Any]) -> None:
    """The trunk frozen and its BatchNorm evaluating, as graft has it; all else by the Trainer's own defaults."""
    import torch
    import torchvision
    from PIL import Image
    from torch import nn
    from torchvision.transforms import v2
    from torchvision.transforms.functional import pil_to_tensor
    from transformers import Trainer, TrainerCallback, TrainingArguments

    transform = v2.Compose([v2.Resize(224, antialias=True), v2.CenterCrop(224)])
    mean, std = (torch.tensor(v).view(3, 1, 1) for v in ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225)))

    class Pictures(torch.utils.data.Dataset[Any]):
        def __len__(self) -> int:
            return len(told["files"])

        def __getitem__(self, index: int) -> dict[str, Any]:
            with Image.open(told["files"][index]) as image:
                pixels = transform(pil_to_tensor(image.convert("RGB")))
            return {"images": (pixels / 255 - mean) / std, "labels": told["labels"][index]}

    class Frozen(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.network = torchvision.models.resnet18(weights=None, num_classes=CLASSES)
            self.network.load_state_dict(torch.load(told["weights"], weights_only=True))
            self.network.requires_grad_(False).fc.requires_grad_(True)

        def train(self, mode: bool = True) -> Frozen:
            super().train(False)
            return self

        def forward(self, images: Any, labels: Any) -> dict[str, Any]:
            logits = self.network(images)
            return {"loss": nn.functional.cross_entropy(logits, labels), "logits": logits}

    losses: list[Any] = []
    ends: list[float] = []

    class Sampler(torch.utils.data.Sampler[int]):
        epoch = 0

        def __len__(self) -> int:
            return len(told["files"])

        def __iter__(self) -> Any:
            self.epoch += 1
            return iter(told["order"][self.epoch - 1])

    class Remembering(Trainer):  # type: ignore[misc]
        def _get_train_sampler(self, *_: Any) -> Any:
            return Sampler()

        def compute_loss(self, model: Any, inputs: Any, *rest: Any, **keys: Any) -> Any:
            loss = super().compute_loss(model, inputs, *rest, **keys)
            losses.append(loss.detach())
            return loss

    class Clock(TrainerCallback):  # type: ignore[misc]
        def on_epoch_end(self, *_: Any, **__: Any) -> None:
            ends.append(time.time())

    settings = TrainingArguments(
        told["out"], num_train_epochs=told["epochs"], per_device_train_batch_size=BATCH, learning_rate=LR, use_cpu=True,
        remove_unused_columns=False, report_to="none",
    )  # fmt: skip
    trainer = Remembering(model=Frozen(), args=settings, train_dataset=Pictures(), callbacks=[Clock()])
    trainer.train()
    result = {"losses": torch.stack(losses).tolist(), "epoch": (ends[-1] - ends[0]) / (len(ends) - 1)}
    (Path(told["out"]) / "result.json").write_text(json.dumps(result), encoding="utf-8")


def main(argv: Sequence[str] | None = None) -> int:
    def more(parser: argparse.ArgumentParser) -> None:
        parser.add_argument("--hf", type=Path, help=argparse.SUPPRESS)

    chosen = results.options("benchmarks.frozen", __doc__, argv, more)
    if chosen.hf is not None:
        by_trainer(json.loads(chosen.hf.read_text()))
        return 0
    count, epochs = results.pick(chosen, 64, 128, 512), results.pick(chosen, 3, 10, 30)
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        pictures(folder / "pictures", count)
        weights(folder / "weights.pt")
        run = run_file(folder, epochs)
        found = {
            "graft, features kept": graft(run, "features", "kept"),
            "graft, features there": graft(run, "features", "there"),
            "graft, cache: none": graft(run, "none", "none"),
            "Hugging Face Trainer": hugging_face(folder, epochs),
        }
    lines = report(found, count, epochs)
    goal = "12 times end to end with 512 images and 30 epochs, the same losses within 1e-4"
    again = results.command("benchmarks.frozen", chosen)
    figures = {name: {"seconds": one[0], "epoch": one[2]} for name, one in found.items()}
    section = results.Section("2", "A head on a frozen ResNet-18 at 224", lines, goal, again, figures)
    return results.finish([section], chosen)


def report(found: dict[str, tuple[float, list[float], float]], count: int, epochs: int) -> list[str]:
    """Markdown. Raises SystemExit where the losses are not the same."""
    seconds, losses, epoch = found["graft, features kept"]
    lines = [
        f"{count} JPEGs, {epochs} epochs of batches of {BATCH}; whole commands, each once, computing the features included.",
        "",
        "| | s in all | times | s an epoch after the first | times | losses differ by at most |",
        "|---|---|---|---|---|---|",
    ]
    for name, (took, curve, one) in found.items():
        worst = max(abs(a - b) for a, b in zip(losses, curve, strict=True))
        if worst > 1e-4:
            raise SystemExit(f"the losses of {name} differ by {worst:.2g}: the comparison would mean nothing")
        lines.append(f"| {name} | {took:.1f} | {took / seconds:.1f} | {one:.4f} | {one / epoch:.0f} | {worst:.1e} |")
    return lines


if __name__ == "__main__":
    sys.exit(main())
