"""Predicted beside measured peak memory of a training step on a CPU: `python -m benchmarks.memory`.

Twelve networks, two micro-batches, and what is frozen. The prediction is what `graft plan` shows (`trainer.forecast`); the
measurement is the real build and the real loop over two steps of two micro-batches, each case in a process of its own: the most
that its resident memory was (VmHWM of Linux), less what it was before the run was put together. Two things are done so that this is
what the training allocated. glibc gives freed memory back at once (MALLOC_MMAP_THRESHOLD_): by its default it keeps holes, which
took up to half as much again. And a first run of the same kind comes before the measured one and is dropped: what that leaves
behind (kernels that oneDNN compiled, thread pools) is the libraries' own and is shown apart.
"""

from __future__ import annotations

import argparse
import ctypes
import gc
import json
import os
import subprocess
import sys
import tempfile
from pathlib import Path
from statistics import median
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
FULL, HEAD = {"strategy": {"kind": "full"}}, {"strategy": {"kind": "head"}}
LAST, LORA = {"strategy": {"kind": "blocks", "last": 2}}, {"strategy": {"kind": "lora", "rank": 8}}
NORMS, AVERAGE = {"strategy": {"kind": "norms"}}, {"strategy": {"kind": "full"}, "train.ema": 0.99}
NETWORKS: dict[str, tuple[int, dict[str, Any]]] = {  # pixels, and a strategy beside `full`
    "torchvision:alexnet": (224, HEAD),
    "torchvision:resnet18": (224, HEAD),
    "torchvision:resnet50": (160, LAST),
    "torchvision:densenet121": (128, HEAD),
    "torchvision:mobilenet_v3_large": (224, NORMS),
    "torchvision:efficientnet_b0": (160, LAST),
    "torchvision:regnet_y_400mf": (224, HEAD),
    "torchvision:convnext_tiny": (160, LAST),
    "torchvision:swin_t": (224, NORMS),
    "torchvision:vit_b_16": (224, LORA),
    "timm:vit_tiny_patch16_224": (224, LORA),
    "timm:mixer_s32_224": (224, AVERAGE),
}
BATCHES = (8, 24)


def cases() -> list[tuple[str, int, dict[str, Any]]]:
    """Source, micro-batch and changed settings."""
    found = []
    for source, (size, other) in NETWORKS.items():
        for settings in (FULL, other):
            found += [(source, batch, {**settings, "model.adapt.image_size": size}) for batch in BATCHES]
    return found


def run_file(folder: Path, source: str, batch: int, settings: dict[str, Any]) -> Path:
    run: dict[str, Any] = {
        "name": "memory",
        "model": {"source": source, "weights": "none", "adapt": {}},
        "strategy": {},
        "data": {"train": "digits:0-4/train", "workers": 0, "cache": "none"},
        "optimizer": {"kind": "adamw", "lr": 1e-4},
        "train": {"steps": 2, "global_batch": 2 * batch, "micro_batch": batch},
        "parallel": {"device": "cpu", "threads": 1},
    }
    for key, value in settings.items():
        *sections, last = key.split(".")
        place = run
        for section in sections:
            place = place.setdefault(section, {})
        place[last] = value
    path = folder / "run.yaml"
    path.write_text(json.dumps(run))
    return path


def predicted(path: Path) -> int:
    """Bytes."""
    from trainer.config import load
    from trainer.forecast import Forecast, prepare

    run = load(path, [])
    micro_batch = run.train.micro_batch
    assert isinstance(micro_batch, int)
    return Forecast(prepare(run), gpu=False)(micro_batch, run.train.global_batch).peak


def measured(path: Path) -> tuple[int, int]:
    """The most bytes of two steps, and the libraries' own."""
    import torch

    from trainer.config import load
    from trainer.memory import Memory
    from trainer.runtime import Runtime

    run = load(path, [])
    runtime = Runtime(run.parallel, run.train, planned=None)
    cpu = torch.device("cpu")
    small = Memory(cpu)
    _train(run, runtime, lambda: None)
    own = small.now()
    memory = Memory(cpu)
    _train(run, runtime, memory.restart)
    return memory.peak() or 0, own


def _train(run: Any, runtime: Any, built: Any) -> None:
    """Two steps of the real loop; `built` comes before the first."""
    from trainer.build import build
    from trainer.loop import Step
    from trainer.progress import Progress
    from trainer.session import assemble
    from trainer.signals import StopFlag
    from trainer.watch import Heartbeat

    with tempfile.TemporaryDirectory() as folder:
        parts, progress = build(run, runtime, None), Progress()
        heart = Heartbeat(Path(folder), 0)
        job = assemble(run, parts, progress, None, None, StopFlag(), heart, None)
        _let_go()
        built()
        job.train_mode()
        step = Step(job)
        for _ in range(2):
            step.step(progress)
        job.batches.close()
        heart.close()
    del parts, job, step
    _let_go()


def _let_go() -> None:
    gc.collect()
    ctypes.CDLL(None).malloc_trim(0)


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.memory", description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--measure", type=Path, help=argparse.SUPPRESS)
    parser.add_argument("--predict", type=Path, help=argparse.SUPPRESS)
    parser.add_argument("--only", default="", help="only networks with this in their names")
    arguments = parser.parse_args()
    if arguments.measure or arguments.predict:
        found = measured(arguments.measure) if arguments.measure else (predicted(arguments.predict),)
        print(json.dumps(found))
        return 0
    print("| network | pixels | learns | micro-batch | predicted MiB | measured MiB | off | libraries' own MiB |")
    print("|---|---|---|---|---|---|---|---|", flush=True)
    off = []
    for source, batch, settings in (case for case in cases() if arguments.only in case[0]):
        with tempfile.TemporaryDirectory() as name:
            path = run_file(Path(name), source, batch, settings)
            (foretold,) = _asked("--predict", path)
            peak, own = _asked("--measure", path)
        off.append(foretold / peak - 1)
        learns = settings["strategy"]["kind"] + (", average" if "train.ema" in settings else "")
        cells = [source.partition(":")[2], settings["model.adapt.image_size"], learns, batch]
        cells += [f"{foretold / 2**20:,.0f}", f"{peak / 2**20:,.0f}", f"{off[-1]:+.1%}", f"{own / 2**20:,.0f}"]
        print("|", " | ".join(map(str, cells)), "|", flush=True)
    sizes = sorted(abs(value) for value in off)
    within = sum(size <= 0.03 for size in sizes)
    print(f"\n{within} of {len(sizes)} within 3%; median {median(sizes):.1%}, most {sizes[-1]:.1%}")
    return 0


def _asked(what: str, path: Path) -> list[int]:
    environment = {**os.environ, "MALLOC_MMAP_THRESHOLD_": "65536", "MALLOC_TRIM_THRESHOLD_": "65536", "OMP_NUM_THREADS": "1"}
    words = [sys.executable, "-m", "benchmarks.memory", what, str(path)]
    done = subprocess.run(words, cwd=ROOT, env=environment, capture_output=True, text=True, check=False)
    if done.returncode:
        raise SystemExit(f"{what} {path.read_text()}\n{done.stderr}")
    found: list[int] = json.loads(done.stdout.splitlines()[-1])
    return found


if __name__ == "__main__":
    sys.exit(main())
