"""A head on a frozen ResNet-18 at 224 pixels: whole commands, with features kept and without, a loop by hand, HF's Trainer.

`python -m benchmarks.frozen` (`--full`: 512 images and 30 epochs, ten minutes to half an hour on two cores). The same weights,
pixels, order of samples, optimizer, schedule and clipping in all; every loss is compared.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path

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
    own = {key: value for key, value in os.environ.items() if key != "OMP_NUM_THREADS"}  # all take the cores that there are
    done = subprocess.run([sys.executable, *words], env=own | environment, capture_output=True, text=True, check=False, cwd=ROOT)
    if done.returncode != 0:
        raise SystemExit(f"{' '.join(words)} failed:\n{done.stderr[-3000:]}")


def order(count: int, epochs: int) -> list[list[int]]:
    """The samples of each epoch as graft takes them, in the order of its listing."""
    from trainer.data.order import Order

    whole = Order(count, 0)
    return [[index for _, index in whole.slice(epoch * count, (epoch + 1) * count)] for epoch in range(epochs)]


def peer(kind: str, folder: Path, epochs: int) -> tuple[float, list[float], float]:
    """The same by one of `frozen_peers`, in a process of its own."""
    files = sorted((folder / "pictures").glob("*/*.jpg"))
    out = folder / kind
    out.mkdir()
    told = {
        "files": [str(file) for file in files], "labels": [int(file.parent.name[6:]) for file in files],
        "order": order(len(files), epochs), "weights": str(folder / "weights.pt"), "out": str(out), "epochs": epochs,
        "batch": BATCH, "lr": LR, "classes": CLASSES,
    }  # fmt: skip
    (out / "told.json").write_text(json.dumps(told), encoding="utf-8")
    began = time.perf_counter()
    command(["-m", "benchmarks.frozen_peers", kind, str(out / "told.json")], {"PYTHONPATH": str(ROOT)})
    took = time.perf_counter() - began
    result = json.loads((out / "result.json").read_text())
    return took, result["losses"], result["epoch"]


def main(argv: Sequence[str] | None = None) -> int:
    chosen = results.options("benchmarks.frozen", __doc__, argv)
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
            "a loop by hand": peer("hand", folder, epochs),
            "Hugging Face Trainer": peer("trainer", folder, epochs),
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
