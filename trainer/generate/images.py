"""The images that are asked for, and making them: a file each."""

from __future__ import annotations

import csv
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import torch

from trainer.config import UserError
from trainer.generate.progress import Progress
from trainer.generate.share import write
from trainer.restored import Restored
from trainer.tasks.base import Makes
from trainer.tasks.gan import Drawn
from trainer.tasks.sampler import Plan, scheduler


@dataclass(frozen=True)
class Asked:
    """One image: its seed and the name of its class, or its text (empty where the network is told of none)."""

    seed: int
    word: str

    @property
    def file(self) -> str:
        safe = re.sub(r"[^A-Za-z0-9._-]+", "_", self.word)[:60]
        return f"{safe}-{self.seed:06d}.png" if safe else f"{self.seed:06d}.png"


def seeds_of(text: str) -> list[int]:
    """`0-15`, `3,7,20-29`: the seeds in their order. Raises UserError."""
    found: list[int] = []
    for part in text.split(","):
        match = re.fullmatch(r"\s*(\d+)\s*(?:-\s*(\d+)\s*)?", part)
        first, last = (int(match[1]), int(match[2] or match[1])) if match else (1, 0)
        if last < first or last >= 2**32:
            raise UserError(f"--seeds: '{part.strip()}' is no seed nor a range; write such as 0-15 or 3,7,20-29")
        found += range(first, last + 1)
    if len(set(found)) < len(found):
        raise UserError(f"--seeds: '{text}' names a seed twice")
    return found


def asked_for(restored: Restored, seeds: Sequence[int], words: Sequence[str]) -> list[Asked]:
    """Every seed with every class (all of them, where none is named), in the order of the seeds. Raises UserError."""
    task = task_of(restored)
    known = () if task.generator.text else task.generator.classes
    if task.generator.text and not words:
        raise UserError(f"{restored.run.name} makes images of texts; write --prompt TEXT (several times for several)")
    for word in words:
        try:
            task.number(word)
        except UserError as error:
            raise UserError(f"{restored.run.name}: {error}") from None
    asked = [Asked(seed, word) for seed in seeds for word in (words or known or [""])]
    files = [one.file for one in asked]
    twice = next((file for file in files if files.count(file) > 1), None) if len(set(files)) < len(files) else None
    if twice is not None:
        raise UserError(
            f"several of what is asked for would be written to {twice}; name them one at a time, with another --out each"
        )
    return asked


def task_of(restored: Restored) -> Makes:
    """The task of a run that generates. Raises UserError for any other."""
    if not isinstance(restored.task, Makes):
        raise UserError(
            f"{restored.run.name} has task {restored.run.task.kind}, which makes no images; name a run that generates"
        )
    if restored.task.generator.source:
        raise UserError(f"{restored.run.name} makes pictures of pictures; write `graft translate {restored.folder.name} FOLDER`")
    return restored.task


def batch_of(restored: Restored) -> int:
    """How many images are made at once, as the run file says."""
    return int(getattr(restored.run.task, "samples").batch)  # noqa: B009 (of every task that generates)


def make(
    restored: Restored, plan: Plan | Drawn, batches: Sequence[Sequence[Asked]], out: Path, device: torch.device, *, show: bool
) -> None:  # fmt: skip
    """Make images batch by batch and write them."""
    task = task_of(restored)
    network = restored.network.to(device)
    done = 0
    with Progress(sum(map(len, batches)), main=show) as progress:
        for part in batches:
            classes = [task.number(one.word) if one.word else 0 for one in part]
            step = progress.stepping(len(part), plan.steps)
            made = task.sample(network, [one.seed for one in part], classes, plan, step)
            for one, image in zip(part, made, strict=True):
                write(out / one.file, image)
            done += len(part)
            progress.done(done)


def note(out: Path, asked: Sequence[Asked], told: str) -> None:
    """What was made, as a table: samples.csv (file, what it was `told`, seed); rows of an earlier call stay."""
    path = out / "samples.csv"
    new = not path.exists()
    with path.open("a", encoding="utf-8", newline="") as file:
        writer = csv.writer(file)
        if new:
            writer.writerow(["file", told, "seed"])
        writer.writerows([one.file, one.word, one.seed] for one in asked)


def drawn(plan: Drawn, asked: Mapping[str, object], truncation: float | None) -> Drawn:
    """The plan of a gan with what the command line says. Raises UserError for what is `asked` of another kind of network."""
    wrong = next((name for name, value in asked.items() if value is not None), None)
    if wrong is not None:
        raise UserError(
            f"--{wrong}: a gan makes an image in one pass of one latent; leave it out (--truncation is what it knows)"
        )
    return plan if truncation is None else replace(plan, truncation=truncation)


def changed(plan: Plan, sampler: str | None, steps: int | None, guidance: float | None) -> Plan:
    """The plan with what the command line says. Raises UserError for what the network or its noise does not allow."""
    plan = replace(plan, sampler=sampler or plan.sampler, steps=steps or plan.steps)
    scheduler(plan.settings, plan.sampler)
    most = int(plan.settings["num_train_timesteps"])
    if plan.steps > most:
        raise UserError(f"--steps is {plan.steps}, and the noise has {most} time steps; write fewer")
    if guidance is None:
        return plan
    if guidance != 1 and plan.nothing is None:
        raise UserError(
            "--guidance: the network was never told that it is told no class (task.drop was 0, or it knows none); leave it at 1"
        )
    return replace(plan, guidance=guidance)
