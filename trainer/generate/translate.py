"""`graft translate`: pictures of pictures, a file each."""

from __future__ import annotations

import argparse
import json
import os
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, get_args

import torch

from trainer.config import EXIT_DONE, EXIT_FAULT, GraftError, Run, UserError
from trainer.config.noise import Sampler
from trainer.config.tasks.cycle import Config as Cycle
from trainer.data import Batch
from trainer.data.pairs import Inputs, way_of
from trainer.data.unpaired import Singles
from trainer.export.cycle import way as spec_of
from trainer.generate.images import changed
from trainer.generate.progress import Progress
from trainer.generate.share import prepare, share, side_by_side, write
from trainer.measuring import precision
from trainer.pixels import pixels
from trainer.predict import expand
from trainer.restored import Restored, device_of, restore, warn_of_changes
from trainer.rundir import RunDir
from trainer.tasks.diffusion import Diffusion


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
    parser.add_argument("--steps", type=int, help="passes through a diffusion model (default: as in the run file)")
    parser.add_argument("--sampler", choices=get_args(Sampler), help="of a diffusion model (default: as in the run file)")
    parser.add_argument(
        "--seed", type=int, help="of the noise of a diffusion model's first picture; the next ones have the next seeds (default: "
        "as in the run file)",
    )  # fmt: skip
    parser.add_argument("--batch", type=int, default=16, help="pictures at once (default: 16)")
    parser.add_argument("--processes", type=int, default=1, help="processes side by side (default: 1)")
    parser.add_argument("--json", action="store_true", help="one JSON object")
    arguments = parser.parse_intermixed_args(argv)
    for name in ("batch", "processes", "steps"):
        if (value := getattr(arguments, name)) is not None and value < 1:
            raise UserError(f"--{name} must be at least 1")
    if arguments.seed is not None and not 0 <= arguments.seed < 2**32:
        raise UserError(f"--seed is {arguments.seed}; write a whole number from 0 to {2**32 - 1}")

    rank, world = int(os.environ.get("RANK", "0")), int(os.environ.get("WORLD_SIZE", "1"))
    folder = RunDir(arguments.run.resolve())
    run = folder.load()
    _goes_with(run, derive=arguments.derive, back=arguments.back)
    restored = restore(folder, arguments.checkpoint)
    maker = Maker(restored, arguments)
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
            bad = make(maker, batches, out, device, show=rank == 0)
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


def _goes_with(run: Run, *, derive: bool, back: bool) -> None:
    """Raises UserError for what the run does not do."""
    way, unpaired = way_of(run), isinstance(run.task, Cycle)
    if way is None and not unpaired:
        raise UserError(f"{run.name} has task {run.task.kind}, which makes no pictures of pictures; name a run that translates")
    if derive and (way is None or not way.derived):
        came = f"{run.name} learnt without pairs" if way is None else f"the pairs of {run.name} came as pairs ({way.kind})"
        raise UserError(f"--derive: {came}; leave it out")
    if back and not unpaired:
        raise UserError(f"--back: {run.name} learnt one way; train with task: {{kind: cycle}} for both")


class Maker:
    """Makes pictures of pictures, by one pass through the network or, of a diffusion model, by many, which begin with noise.

    `read(file, its number)` gives a picture as `network` takes it, of the kind `spec`.
    """

    def __init__(self, restored: Restored, arguments: argparse.Namespace) -> None:
        """Raises UserError for what is said of noise where there is none."""
        run, task = restored.run, restored.task
        self.network, self.spec = restored.network, restored.spec
        self.read: Callable[[Path, int], torch.Tensor]
        if isinstance(run.task, Cycle):
            both: Any = restored.network
            self.network, self.spec = both.back if arguments.back else both.forth, spec_of(restored, back=arguments.back)
            self.read = Singles(run, self.spec)
        else:
            self.read = Inputs(run, self.spec, derived=arguments.derive)
        self._task = task if isinstance(task, Diffusion) else None
        if self._task is not None:
            self._plan = changed(self._task.plan(), arguments.sampler, arguments.steps, None)
            self._first = self._task.first_seed if arguments.seed is None else arguments.seed
            warn_of_changes(restored)
            return
        for option in ("sampler", "steps", "seed"):
            if getattr(arguments, option) is not None:
                raise UserError(f"--{option}: {run.name} makes a picture in one pass, without noise; leave it out")

    @property
    def passes(self) -> int:
        """Through the network, for a picture."""
        return self._plan.steps if self._task is not None else 1

    def __call__(self, images: torch.Tensor, numbers: Sequence[int], step: Callable[[], None]) -> torch.Tensor:
        """Pictures, uint8 on the CPU, of those of a batch as the network takes them; their noise belongs to their numbers."""
        if self._task is None:
            return pixels(self.network(images)).cpu()
        return self._task.translate(self.network, images, [self._first + number for number in numbers], self._plan, step)


def make(
    maker: Maker, batches: Sequence[Sequence[Asked]], out: Path, device: torch.device, *, show: bool
) -> list[Asked]:  # fmt: skip
    """Make the pictures batch by batch and write them; those that cannot be read are told, and returned."""
    maker.network.to(device)
    bad: list[Asked] = []
    done = 0
    with Progress(sum(map(len, batches)), main=show) as progress:
        for part in batches:
            step = progress.stepping(len(part), maker.passes)
            images, kept = [], []
            for one in part:
                try:
                    images.append(maker.read(one.source, one.index))
                    kept.append(one)
                except (GraftError, OSError, ValueError) as error:
                    print(f"graft: {error}", file=sys.stderr)
                    bad.append(one)
            if kept:
                nothing = torch.zeros(len(kept), dtype=torch.int64)
                batch = Batch(torch.stack(images), nothing, nothing).to(device, maker.spec)
                with torch.inference_mode():
                    made = maker(batch.images, [one.index for one in kept], step)
                for one, image in zip(kept, made, strict=True):
                    write(out / one.place, image)
            done += len(part)
            progress.done(done)
    return bad
