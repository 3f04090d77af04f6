"""What a measurement leaves: sections of Markdown with their figures, and the machine and versions that they were made with."""

from __future__ import annotations

import argparse
import importlib.metadata
import json
import os
import platform
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

HERE = Path(__file__).resolve().parent
PACKAGES = (
    "graft-trainer", "torch", "torchvision", "accelerate", "deepspeed", "transformers", "timm", "diffusers", "lightning",
    "hydra-core", "submitit",
)  # fmt: skip


@dataclass(frozen=True)
class Section:
    """A row of the table of measurements: its number, what was done, Markdown, the figures behind it, and the command."""

    number: str
    title: str
    lines: Sequence[str]
    goal: str
    command: str
    figures: Mapping[str, Any] = field(default_factory=dict)

    def markdown(self) -> str:
        goal = f"Goal: {self.goal}. " if self.goal else ""
        return "\n".join([f"## {self.number}. {self.title}", "", *self.lines, "", f"{goal}Again: `{self.command}`", ""])


def options(
    module: str,
    doc: str | None,
    argv: Sequence[str] | None = None,
    more: Callable[[argparse.ArgumentParser], object] | None = None,
) -> argparse.Namespace:
    """`--quick`, `--full`, `--json`, and what `more` adds."""
    parser = argparse.ArgumentParser(prog=f"python -m {module}", description=(doc or "").partition("\n")[0])
    parser.add_argument("--quick", action="store_true", help="small settings: shows that it works, its figures mean little")
    parser.add_argument("--full", action="store_true", help="as many pairs as a claim under 3%% needs")
    parser.add_argument("--json", type=Path, help="write the sections there")
    if more is not None:
        more(parser)
    chosen = parser.parse_args(argv)
    if chosen.quick and chosen.full:
        parser.error("--quick and --full are opposites: give one of them")
    return chosen


def pick(chosen: argparse.Namespace, quick: int, usual: int, full: int) -> int:
    """A number by the settings."""
    return quick if chosen.quick else full if chosen.full else usual


def command(module: str, chosen: argparse.Namespace) -> str:
    """What repeats a measurement."""
    return f"python -m {module}{' --quick' if chosen.quick else ''}{' --full' if chosen.full else ''}"


def finish(sections: Sequence[Section], chosen: argparse.Namespace) -> int:
    """Print the sections, and write them where `--json` says."""
    for section in sections:
        print(section.markdown(), flush=True)
    if chosen.json is not None:
        chosen.json.write_text(json.dumps([asdict(section) for section in sections], indent=1), encoding="utf-8")
    return 0


def versions() -> dict[str, str]:
    """Of what is installed here."""
    found = {"python": platform.python_version()}
    for name in PACKAGES:
        try:
            found[name] = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            continue
    return found


def machine() -> dict[str, Any]:
    """Processor, cores, memory, load, GPUs, the day."""
    import psutil
    import torch

    text = Path("/proc/cpuinfo").read_text(encoding="utf-8") if Path("/proc/cpuinfo").exists() else ""
    models = [line.partition(":")[2].strip() for line in text.splitlines() if line.startswith("model name")]
    gpus = [torch.cuda.get_device_name(number) for number in range(torch.cuda.device_count())]
    return {
        "processor": models[0] if models else platform.machine(), "cores": len(os.sched_getaffinity(0)),
        "memory_gib": round(psutil.virtual_memory().total / 2**30, 1), "load": [round(value, 2) for value in os.getloadavg()],
        "gpus": gpus, "system": platform.platform(), "day": time.strftime("%Y-%m-%d %H:%M"),
    }  # fmt: skip
