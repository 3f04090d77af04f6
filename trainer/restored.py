"""A trained network, taken out of its run folder for use: needs neither the training data nor the pretrained weights."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from safetensors.torch import load_file
from torch import nn

from trainer.checkpoint import Store, fill
from trainer.config import RefusedError, Run, UserError
from trainer.models import build_model
from trainer.rundir import RunDir
from trainer.spec import InputSpec


@dataclass(frozen=True)
class Restored:
    """The network on the CPU in eval mode, with its averaged weights where the run kept an average."""

    folder: RunDir
    run: Run
    network: nn.Module
    spec: InputSpec
    classes: tuple[str, ...]
    counts: tuple[int, ...]
    step: int


def restore(folder: RunDir, which: str) -> Restored:
    """The network of a checkpoint: `best`, `last` or a step. Raises UserError or RefusedError."""
    run = folder.load()
    loaded = Store(folder.checkpoints, keep=run.checkpoint.keep).named(which)
    state = loaded.state
    classes = tuple(state["classes"])
    built = build_model(run.model, run.data.normalize, classes, 0, load_weights=False)
    weights = load_file(loaded.path / "model.safetensors")
    average = loaded.path / "model-average.safetensors"
    if average.exists():
        weights |= load_file(average)
    try:
        fill(built.network, weights)
    except RefusedError as error:
        raise RefusedError(f"{loaded.path} does not fit the network of {folder.config}: {error}") from None
    built.network.eval().requires_grad_(False)
    spec = InputSpec(
        state["spec"]["in_channels"], state["spec"]["image_size"], tuple(state["spec"]["mean"]), tuple(state["spec"]["std"])
    )
    return Restored(folder, run, built.network, spec, classes, tuple(state["counts"]), loaded.step)


def device_of(name: str) -> torch.device:
    """`auto` (a GPU where there is one), `cpu`, `cuda` or `cuda:1`; UserError for another word or a GPU that is not there."""
    if name == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    kind, _, number = name.partition(":")
    if name != "cpu" and (kind != "cuda" or not (number or "0").isdigit()):
        raise UserError(f"--device {name}: write auto, cpu, cuda or cuda:1")
    if kind == "cuda" and int(number or 0) >= torch.cuda.device_count():
        raise UserError(f"--device {name}: {torch.cuda.device_count()} GPU(s) are visible; write auto or cpu")
    return torch.device(name)
