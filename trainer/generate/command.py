"""What `graft sample` is told, and what it does."""

from __future__ import annotations

import argparse
import json
import os
from pathlib import Path
from typing import get_args

from trainer.config import EXIT_DONE, UserError
from trainer.config.noise import Sampler
from trainer.generate import images
from trainer.generate.share import prepare, share, side_by_side
from trainer.measuring import precision
from trainer.restored import Restored, device_of, restore, warn_of_changes
from trainer.rundir import RunDir
from trainer.tasks.gan import Drawn
from trainer.tasks.sampler import Plan


def sample(parser: argparse.ArgumentParser, argv: list[str]) -> int:
    """Read the arguments and make the images; as one of several ranks (RANK, WORLD_SIZE) a share of them. Raises UserError."""
    parser.add_argument("--classes", default="", help="names, separated by commas (default: all that the network is told of)")
    parser.add_argument(
        "--prompt",
        action="append",
        default=[],
        metavar="TEXT",
        help="what they show, of a network that is told texts; several times",
    )
    parser.add_argument(
        "--seeds", default="0-3", help="such as 0-15 or 3,7,20-29 (default: 0-3); the same seed is the same image"
    )
    parser.add_argument("--guidance", type=float, help="how far past no class towards the class (default: as in the run file)")
    parser.add_argument("--steps", type=int, help="passes through the network (default: as in the run file)")
    parser.add_argument("--sampler", choices=get_args(Sampler), help="(default: as in the run file)")
    parser.add_argument("--truncation", type=float, help="of a gan: latents no further from 0 (default: as in the run file)")
    parser.add_argument("--batch", type=int, help="images at once (default: as in the run file)")
    parser.add_argument("--out", type=Path, help="the folder to write (default: RUN/generated/step-…)")
    parser.add_argument("--processes", type=int, default=1, help="processes side by side (default: 1)")
    parser.add_argument("--json", action="store_true", help="one JSON object")
    arguments = parser.parse_args(argv)
    for name in ("steps", "batch", "processes"):
        if (value := getattr(arguments, name)) is not None and value < 1:
            raise UserError(f"--{name} must be at least 1")
    if arguments.guidance is not None and arguments.guidance < 0:
        raise UserError("--guidance must be at least 0")
    if arguments.truncation is not None and arguments.truncation <= 0:
        raise UserError("--truncation must be above 0")

    rank, world = int(os.environ.get("RANK", "0")), int(os.environ.get("WORLD_SIZE", "1"))
    folder = RunDir(arguments.run.resolve())
    restored = restore(folder, arguments.checkpoint)
    warn_of_changes(restored)
    device = device_of(arguments.device, rank if world > 1 else None)
    plan = _plan(restored, arguments)
    text = images.task_of(restored).generator.text
    if arguments.classes if text else arguments.prompt:
        wrong, right = ("--classes", "--prompt TEXT") if text else ("--prompt", "--classes NAMES")
        raise UserError(f"{wrong}: {restored.run.name} is told {'texts' if text else 'no text'}; write {right}")
    words = arguments.prompt or [word.strip() for word in arguments.classes.split(",") if word.strip()]
    asked = images.asked_for(restored, images.seeds_of(arguments.seeds), words)
    out = arguments.out or folder.path / "generated" / f"step-{restored.step:08d}"
    batches = share(asked, arguments.batch or images.batch_of(restored), rank, world)
    prepare(out, [Path(one.file) for part in batches for one in part])
    if arguments.processes > 1 and world == 1:
        side_by_side("sample", argv, arguments.processes)
    else:
        with precision(restored.run.train.precision if device.type == "cuda" else "fp32", device):
            images.make(restored, plan, batches, out, device, show=rank == 0)
    if world == 1:
        images.note(out, asked, "text" if text else "class")
        told = {"folder": str(out), "step": restored.step, "images": len(asked)}
        print(json.dumps(told) if arguments.json else f"{len(asked)} images of step {restored.step:,} are in {out}")
    return EXIT_DONE


def _plan(restored: Restored, asked: argparse.Namespace) -> Plan | Drawn:
    """How images are made, as the run file and the command line say. Raises UserError for what the network has no use for."""
    plan: Plan | Drawn = images.task_of(restored).plan()
    told = {"sampler": asked.sampler, "steps": asked.steps, "guidance": asked.guidance}
    if isinstance(plan, Drawn):
        return images.drawn(plan, told, asked.truncation)
    if asked.truncation is not None:
        raise UserError(
            f"--truncation: is of the latents of a gan, and {restored.run.name} has task {restored.run.task.kind}; leave it out"
        )
    return images.changed(plan, **told)
