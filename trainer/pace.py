"""What the record says of a run's speed is put together from the run, the device and the folder."""

from __future__ import annotations

import torch

from trainer.config.alike import alike, between, cpu
from trainer.config.peaks import peak
from trainer.operations import Counting
from trainer.parts import Parts
from trainer.rundir import RunDir
from trainer.track.speed import Machinery, Speed


def speed_of(folder: RunDir, parts: Parts) -> Speed:
    """What follows from the speed; the operations of a step are counted only where the peak of the card is known."""
    run, runtime = parts.run, parts.runtime
    cuda = runtime.device.type == "cuda"
    device = torch.cuda.get_device_name(runtime.device) if cuda else cpu()
    most = peak(device, run, tf32=bool(runtime.computing.told["tf32"])) if cuda else None
    on = Machinery(
        device, runtime.world, gpus=runtime.world if cuda else 0, threads=torch.get_num_threads(),
        peak=None if most is None else most * runtime.world,
    )  # fmt: skip
    held = 4 * (parts.summary.learning + parts.summary.frozen)
    counting = Counting(folder, run, runtime.world, held) if most is not None else None
    return Speed(on, parts.steps * run.train.global_batch, alike(run), between(run), counting)
