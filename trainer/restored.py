"""A trained network, taken out of its run folder for use: needs neither the training data nor the pretrained weights."""

from __future__ import annotations

import logging
import re
from collections.abc import Mapping
from dataclasses import dataclass, field, replace

import torch
from torch import nn

from trainer import strategies
from trainer.checkpoint import Store, averaged, fill
from trainer.config import RefusedError, Run, UserError
from trainer.config.targets import Facts
from trainer.models import build_model
from trainer.models import run as run_source
from trainer.models.gan import without_weights
from trainer.references import fingerprint
from trainer.rundir import RunDir
from trainer.spec import Beside, InputSpec
from trainer.tasks import build_task
from trainer.tasks.base import Generates, Task, Translates, wanted
from trainer.tasks.opposing import Duels

log = logging.getLogger("graft")


@dataclass(frozen=True)
class Restored:
    """The network on the CPU in eval mode, with its averaged weights where the run kept an average; `head` are the names of its
    output layers.
    """

    folder: RunDir
    run: Run
    network: nn.Module
    spec: InputSpec
    task: Task
    facts: Facts
    head: tuple[str, ...]
    step: int
    beside: Beside | None = None  # of a network that generates
    references: Mapping[str, str] = field(default_factory=dict)  # fingerprints of the networks beside it, as it was trained


def restore(folder: RunDir, which: str, *, merge: bool = True) -> Restored:
    """The network of a checkpoint: `best`, `last` or a step; without `merge` its adapters stand beside the weights still.

    Raises UserError or RefusedError.
    """
    run = folder.load()
    loaded = Store(folder.checkpoints, keep=run.checkpoint.keep).named(which)
    state = loaded.state
    # before there were other tasks a checkpoint said the classes and their counts
    facts = Facts.from_json(state["facts"]) if "facts" in state else Facts.plain(state["classes"], state["counts"])
    task = build_task(run.task, facts)
    model = without_weights(run.model, state) if isinstance(task, Duels) else run.model
    built = build_model(model, run.data.normalize, wanted(task), 0, load_weights=False)
    strategies.inject(run.strategy, built.network, built.head, tuple(state["fresh"]))
    weights = averaged(loaded.path)
    try:
        fill(built.network, weights)
    except RefusedError as error:
        raise RefusedError(f"{loaded.path} does not fit the network of {folder.config}: {error}") from None
    network = strategies.merge(run.strategy, built.network) if merge else built.network
    network = network.eval().requires_grad_(False)
    if isinstance(task, Generates) and built.beside is not None:
        task.bind(replace(built.beside, schedule=state["generator"]["schedule"]), run.train.seed)
    spec = InputSpec(**{**state["spec"], "mean": tuple(state["spec"]["mean"]), "std": tuple(state["spec"]["std"])})
    if isinstance(task, Translates | Duels):
        task.fit(spec, network, run.train.seed)
    references = state.get("references", {})
    return Restored(folder, run, network, spec, task, facts, tuple(built.head), loaded.step, built.beside, references)


def warn_of_changes(restored: Restored) -> None:
    """Say which networks beside a generator are others now than those that it was trained with."""
    beside, folder = restored.beside, restored.folder
    if beside is None:
        return
    for name, part in {"vae": beside.vae, "text": beside.text}.items():
        if part is not None and restored.references.get(name) != fingerprint(part.network):
            log.warning(
                "%s has other weights now than when %s was trained, so that its images are others; bring the old ones back",
                part.source, folder.name,
            )  # fmt: skip


def _tensors(folder: RunDir, which: str) -> dict[str, torch.Tensor]:
    return dict(restore(folder, which).network.state_dict())


run_source.merged[:] = [_tensors]


def device_of(name: str, rank: int | None = None) -> torch.device:
    """`auto` (a GPU where there is one), `cpu`, `cuda` or `cuda:1`. Raises UserError for what is not there.

    With `rank`, one of several processes, GPUs are taken in turn where none is named.
    """
    if name == "auto":
        name = "cuda" if torch.cuda.is_available() else "cpu"
    if name == "cuda" and rank is not None and torch.cuda.device_count():
        name = f"cuda:{rank % torch.cuda.device_count()}"
    match = re.fullmatch(r"cpu|cuda(?::([0-9]+))?", name)
    if match is None:
        raise UserError(f"--device is '{name}'; write auto, cpu, cuda, or cuda:1 for the second GPU")
    if name != "cpu" and int(match[1] or 0) >= torch.cuda.device_count():
        raise UserError(f"--device is {name}, and {torch.cuda.device_count()} GPUs are visible; write --device cpu, or auto")
    return torch.device(name)
