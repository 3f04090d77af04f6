"""Predicted beside measured peak memory of a training step on a CPU: `python -m benchmarks.memory`.

Twelve networks, two micro-batches, and what is frozen. The prediction is what `graft plan` shows (`trainer.forecast`). The
measurement is the real build and the real loop over two steps of two micro-batches, each case in a process of its own: every
block that torch's CPU allocator gave out and took back, as its profiler records them, from before the build; their sum at its
highest in the steps. That is what torch.cuda.max_memory_allocated counts on a GPU. Beside it stands what the process grew by
(VmHWM of Linux, with the pages of libraries and the holes of malloc, which is told to give freed blocks back).
"""

from __future__ import annotations

import argparse
import gc
import json
import os
import sys
import tempfile
import traceback
from collections.abc import Callable, Sequence
from pathlib import Path
from statistics import median
from typing import Any

from benchmarks import results

_BEGUN = "steps begin"
_MALLOC = {"MALLOC_MMAP_THRESHOLD_": "65536", "MALLOC_TRIM_THRESHOLD_": "65536", "OMP_NUM_THREADS": "1"}
FULL, HEAD = {"strategy": {"kind": "full"}}, {"strategy": {"kind": "head"}}
LAST, LORA = {"strategy": {"kind": "blocks", "last": 2}}, {"strategy": {"kind": "lora", "rank": 8}}
NORMS, AVERAGE = {"strategy": {"kind": "norms"}}, {"strategy": {"kind": "full"}, "train.ema": 0.99}
NETWORKS: dict[str, tuple[int, dict[str, Any]]] = {  # pixels, and a strategy beside `full`
    "torchvision:alexnet": (128, HEAD),
    "torchvision:resnet18": (96, HEAD),
    "torchvision:resnet50": (96, LAST),
    "torchvision:densenet121": (64, HEAD),
    "torchvision:mobilenet_v3_large": (96, NORMS),
    "torchvision:efficientnet_b0": (96, LAST),
    "torchvision:regnet_y_400mf": (96, HEAD),
    "torchvision:convnext_tiny": (96, LAST),
    "torchvision:swin_t": (112, NORMS),
    "torchvision:vit_b_16": (96, LORA),
    "timm:vit_tiny_patch16_224": (96, LORA),
    "timm:mixer_s32_224": (224, AVERAGE),
}
# looked at for the first time when `trainer.kernels` was done, which was found with the ones above
OTHERS: dict[str, tuple[int, dict[str, Any]]] = {
    "torchvision:vgg11_bn": (64, LAST),
    "torchvision:squeezenet1_1": (96, HEAD),
    "torchvision:shufflenet_v2_x1_0": (96, HEAD),
    "torchvision:mnasnet1_0": (96, NORMS),
    "torchvision:maxvit_t": (224, HEAD),
    "timm:convmixer_768_32": (64, HEAD),
    "timm:levit_128s": (224, HEAD),
    "timm:resnest14d": (96, LAST),
}
BATCHES = (8, 24)


def cases(networks: dict[str, tuple[int, dict[str, Any]]]) -> list[tuple[str, int, dict[str, Any]]]:
    """Source, micro-batch and changed settings."""
    found = []
    for source, (size, other) in networks.items():
        chosen = [(FULL, batch) for batch in BATCHES] + [(other, BATCHES[-1])]
        found += [(source, batch, {**settings, "model.adapt.image_size": size}) for settings, batch in chosen]
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


def predicted(path: Path) -> list[int]:
    """Bytes."""
    from trainer.config import load
    from trainer.forecast import Forecast, prepare

    run = load(path, [])
    micro_batch = run.train.micro_batch
    assert isinstance(micro_batch, int)
    return [Forecast(prepare(run, 1), gpu=False)(micro_batch, run.train.global_batch).peak]


def estimated(path: Path) -> list[int]:
    """Bytes by `accelerate estimate-memory` (training with Adam in fp32) and by DeepSpeed's estimator (ZeRO-2 on one GPU).

    Both look at the number of parameters alone; their own functions are called on the network that graft builds.
    """
    from accelerate.commands.estimate import estimate_training_usage
    from accelerate.utils import calculate_maximum_sizes
    from deepspeed.runtime.zero.stage_1_and_2 import estimate_zero2_model_states_mem_needs

    from trainer.config import load
    from trainer.forecast import prepare

    network = prepare(load(path, []), 1).phase.network
    size, _ = calculate_maximum_sizes(network)
    count = sum(parameter.numel() for parameter in network.parameters())
    usage = estimate_training_usage(int(size), "float32")
    return [max(usage.values()), estimate_zero2_model_states_mem_needs(count, 1, 1, cpu_offload=False)[1]]


def measured(path: Path) -> list[int]:
    """The most bytes that torch gave out at once in two steps, and the bytes that the process grew by."""
    import torch
    from torch.profiler import ProfilerActivity, profile

    from trainer.config import load
    from trainer.memory import Memory
    from trainer.runtime import Runtime

    run = load(path, [])
    runtime = Runtime(run.parallel, run.train, planned=None, uncompiled=None)
    memory = Memory(torch.device("cpu"))
    with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as seen:
        _train(run, runtime, memory)
    grown = memory.peak() or 0
    result = seen.profiler.kineto_results
    events = sorted(result.events(), key=lambda event: event.start_ns())
    held = most = 0
    begun = False
    for event in events:
        begun = begun or event.name() == _BEGUN
        if event.name() == "[memory]":
            held += event.nbytes()
            most = max(most, held) if begun else 0
    return [most, grown]


def _train(run: Any, runtime: Any, memory: Any) -> None:
    """Two steps of the real loop."""
    import torch

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
        gc.collect()
        memory.restart()
        job.train_mode()
        step = Step(job)
        with torch.profiler.record_function(_BEGUN):
            for _ in range(2):
                step.step(progress)
        job.batches.close()
        heart.close()


def apart(work: Callable[[Path], list[int]], path: Path) -> list[int]:
    """What a function gives in a process of its own, which begins with what is imported here."""
    reading, writing = os.pipe()
    child = os.fork()
    if child == 0:
        code = 1
        try:
            os.write(writing, json.dumps(work(path)).encode())
            code = 0
        except BaseException:
            traceback.print_exc()
        finally:
            os._exit(code)
    os.close(writing)
    with os.fdopen(reading) as answer:
        text = answer.read()
    if os.waitpid(child, 0)[1]:
        raise SystemExit(f"{work.__name__} failed for {path.read_text()}")
    found: list[int] = json.loads(text)
    return found


def main(argv: Sequence[str] | None = None) -> int:
    def more(parser: argparse.ArgumentParser) -> None:
        parser.add_argument("--others", action="store_true", help="eight other networks")
        parser.add_argument("--only", default="", help="only networks with this in their names")

    chosen = results.options("benchmarks.memory", __doc__, argv, more)
    if os.environ.keys() & _MALLOC.keys() != _MALLOC.keys():  # read when a process starts
        os.execve(sys.executable, [sys.executable, "-m", "benchmarks.memory", *sys.argv[1:]], {**os.environ, **_MALLOC})
    import trainer.forecast
    import trainer.session  # noqa: F401 (what every case needs)

    every = [case for case in cases(OTHERS if chosen.others else NETWORKS) if chosen.only in case[0]]
    if not chosen.full:
        every = every[:: len(BATCHES) + 1]  # learning whole, with the smaller micro-batch
    lines = [
        "| network | pixels | learns | batch | allocated MiB | graft | off | accelerate | off | DeepSpeed | off | grown MiB |",
        "|---|---|---|---|---|---|---|---|---|---|---|---|",
    ]
    off: dict[str, list[float]] = {"graft": [], "accelerate estimate-memory": [], "DeepSpeed": []}
    for source, batch, settings in every[: 2 if chosen.quick else None]:
        with tempfile.TemporaryDirectory() as name:
            path = run_file(Path(name), source, batch, settings)
            foretold = [*apart(predicted, path), *apart(estimated, path)]
            peak, grown = apart(measured, path)
        learns = settings["strategy"]["kind"] + (", average" if "train.ema" in settings else "")
        cells = [source.partition(":")[2], settings["model.adapt.image_size"], learns, batch, f"{peak / 2**20:,.1f}"]
        for whose, value in zip(off, foretold, strict=True):
            off[whose].append(value / peak - 1)
            cells += [f"{value / 2**20:,.1f}", f"{off[whose][-1]:+.2%}"]
        lines.append(f"| {' | '.join(map(str, [*cells, f'{grown / 2**20:,.0f}']))} |")
        print(lines[-1], file=sys.stderr, flush=True)
    lines.append("")
    for whose, values in off.items():
        sizes = sorted(abs(value) for value in values)
        within, under = sum(size <= 0.03 for size in sizes), sum(value < -0.03 for value in values)
        most = f"median {median(sizes):.2%}, most {sizes[-1]:.2%}"
        lines.append(f"- {whose}: {within} of {len(sizes)} within 3%, {under} more than 3% too low; {most}")
    command = results.command("benchmarks.memory", chosen) + " --others" * chosen.others
    command += f" --only {chosen.only}" if chosen.only else ""
    goal = "3% on a CPU; never a false 'fits'"
    return results.finish([results.Section("9", "Predicted peak memory", lines, goal, command, off)], chosen)


if __name__ == "__main__":
    sys.exit(main())
