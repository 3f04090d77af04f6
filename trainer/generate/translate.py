"""`graft translate`: pictures of pictures, a file each."""

from __future__ import annotations

import argparse
import json
import os
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import nn

from trainer.config import EXIT_DONE, EXIT_FAULT, GraftError, UserError
from trainer.config.tasks.cycle import Config as Cycle
from trainer.config.tasks.translate import Config
from trainer.data import Batch
from trainer.data.pairs import Inputs
from trainer.data.unpaired import Singles
from trainer.export.cycle import way as spec_of
from trainer.generate.progress import Progress
from trainer.generate.share import prepare, share, side_by_side, write
from trainer.measuring import precision
from trainer.predict import expand
from trainer.restored import Restored, device_of, restore
from trainer.rundir import RunDir
from trainer.spec import InputSpec
from trainer.tasks.likening import pixels


@dataclass(frozen=True)
class Asked:
    """A picture, its number among those that are asked for, and where below the folder what is made of it belongs."""

    index: int
    source: Path
    place: Path


def translate(parser: argparse.ArgumentParser, argv: list[str]) -> int:
    """Read the arguments and make the pictures; as one of several ranks (RANK, WORLD_SIZE) a share of them. Raises UserError."""
    parser.add_argument("files", nargs="+", type=Path, help="pictures, or folders of pictures")
    parser.add_argument("--out", type=Path, help="the folder to write (default: RUN/translated/step-…)")
    parser.add_argument(
        "--derive", action="store_true", help="the pictures are targets: make the inputs of them first, as the training does"
    )
    parser.add_argument("--back", action="store_true", help="the way back, of a run with task cycle")
    parser.add_argument("--batch", type=int, default=16, help="pictures at once (default: 16)")
    parser.add_argument("--processes", type=int, default=1, help="processes side by side (default: 1)")
    parser.add_argument("--json", action="store_true", help="one JSON object")
    arguments = parser.parse_intermixed_args(argv)
    for name in ("batch", "processes"):
        if getattr(arguments, name) < 1:
            raise UserError(f"--{name} must be at least 1")

    rank, world = int(os.environ.get("RANK", "0")), int(os.environ.get("WORLD_SIZE", "1"))
    folder = RunDir(arguments.run.resolve())
    run = folder.load()
    if not isinstance(run.task, Config | Cycle):
        raise UserError(f"{run.name} has task {run.task.kind}, which makes no pictures of pictures; name a run that translates")
    pairs = run.task.pairs.kind if isinstance(run.task, Config) else "none"
    if arguments.derive and not (isinstance(run.task, Config) and run.task.pairs.derived):
        came = f"the pairs of {run.name} came as pairs ({pairs})" if pairs != "none" else f"{run.name} learnt without pairs"
        raise UserError(f"--derive: {came}; leave it out")
    if arguments.back and isinstance(run.task, Config):
        raise UserError(f"--back: {run.name} learnt one way; train with task: {{kind: cycle}} for both")
    restored = restore(folder, arguments.checkpoint)
    way = _way(restored, derived=arguments.derive, back=arguments.back)
    asked = asked_for(arguments.files)
    out = arguments.out or folder.path / "translated" / f"step-{restored.step:08d}{'-back' if arguments.back else ''}"
    batches = share(asked, arguments.batch, rank, world)
    prepare(out, [one.place for part in batches for one in part])
    if arguments.processes > 1 and world == 1:
        side_by_side("translate", argv, arguments.processes)
        failed = [one.source for one in asked if not (out / one.place).exists()]
    else:
        device = device_of(arguments.device, rank if world > 1 else None)
        with precision(run.train.precision if device.type == "cuda" else "fp32", device):
            bad = make(way, batches, out, device, show=rank == 0)
        failed = [one.source for one in bad]
    if world == 1:
        told = {
            "folder": str(out),
            "step": restored.step,
            "pictures": len(asked) - len(failed),
            "failed": [str(f) for f in failed],
        }
        line = f"{told['pictures']} pictures by step {restored.step:,} are in {out}"
        print(json.dumps(told) if arguments.json else line + (f"; {len(failed)} could not be read" if failed else ""))
        return EXIT_FAULT if failed else EXIT_DONE
    return EXIT_DONE


def asked_for(files: Sequence[Path]) -> list[Asked]:
    """The pictures of files and folders, each with a place of its own. Raises UserError."""
    asked: list[Asked] = []
    for path in files:
        for found in expand([path]):
            place = found.relative_to(path) if path.is_dir() else Path(found.name)
            asked.append(Asked(len(asked), found, place.with_suffix(".png")))
    places: dict[Path, Path] = {}
    for one in asked:
        if one.place in places:
            raise UserError(f"{places[one.place]} and {one.source} would both become {one.place}; translate them one by one")
        places[one.place] = one.source
    return asked


@dataclass(frozen=True)
class Way:
    """A network, what it takes, and how that is read."""

    network: nn.Module
    spec: InputSpec
    read: Callable[[Path, int], torch.Tensor]


def _way(restored: Restored, *, derived: bool, back: bool) -> Way:
    """Of a run with one network, or of one that learnt both ways."""
    network: Any = restored.network
    if isinstance(restored.run.task, Config):
        return Way(network, restored.spec, Inputs(restored.run, restored.spec, derived=derived))
    spec = spec_of(restored, back=back)
    return Way(network.back if back else network.forth, spec, Singles(restored.run, spec))


def make(
    way: Way, batches: Sequence[Sequence[Asked]], out: Path, device: torch.device, *, show: bool
) -> list[Asked]:  # fmt: skip
    """Make the pictures batch by batch and write them; those that cannot be read are told, and returned."""
    network = way.network.to(device)
    bad: list[Asked] = []
    done = 0
    with Progress(sum(map(len, batches)), main=show) as progress:
        for part in batches:
            images, kept = [], []
            for one in part:
                try:
                    images.append(way.read(one.source, one.index))
                    kept.append(one)
                except (GraftError, OSError, ValueError) as error:
                    print(f"graft: {error}", file=sys.stderr)
                    bad.append(one)
            if kept:
                nothing = torch.zeros(len(kept), dtype=torch.int64)
                batch = Batch(torch.stack(images), nothing, nothing).to(device, way.spec)
                with torch.inference_mode():
                    made = pixels(network(batch.images)).cpu()
                for one, image in zip(kept, made, strict=True):
                    write(out / one.place, image)
            done += len(part)
            progress.done(done)
    return bad
