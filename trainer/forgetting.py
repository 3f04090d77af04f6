"""How much of its source task a network has forgotten: measured before and after the graft, with the head it came with."""

from __future__ import annotations

import json
import logging
from dataclasses import asdict, dataclass, replace
from typing import Any

import torch
from torch import nn

from trainer.config import GraftError, UserError
from trainer.config.run import Model
from trainer.config.sources import Listing, open_source
from trainer.config.tasks import classify
from trainer.measuring import figures
from trainer.models import Built
from trainer.models.given import as_given
from trainer.restored import Restored, restore
from trainer.rundir import RunDir, write_atomically
from trainer.spec import Output
from trainer.tasks import build_task

log = logging.getLogger("graft")
METRICS = ("accuracy", "loss")


@dataclass(frozen=True)
class Forgetting:
    """Figures over the samples of the source task; `forgotten` is accuracy before minus accuracy after (Chaudhry et al. 2018)."""

    data: str
    samples: int
    before: dict[str, float]
    after: dict[str, float]
    step: int

    @property
    def forgotten(self) -> float:
        return self.before["accuracy"] - self.after["accuracy"]

    def as_json(self) -> dict[str, Any]:
        return {**asdict(self), "forgetting": self.forgotten}

    def text(self) -> str:
        """One line for people."""
        before, after = self.before["accuracy"], self.after["accuracy"]
        return (
            f"source task on {self.data}, {self.samples:,} samples: accuracy {before:.4f} before, {after:.4f} after step "
            f"{self.step:,}; forgotten {self.forgotten:+.4f}"
        )


def forgetting(restored: Restored, source: str, device: torch.device) -> Forgetting:
    """Measure a trained run on the task that its weights came from.

    The network is built once more with the head of its weights; then its trunk is replaced by the trained one. Needs the
    pretrained weights, and samples of the source's classes. Raises UserError where there is no source task to forget.
    """
    run = restored.run
    if run.model.weights == "none":
        raise UserError(f"{run.name} was trained from scratch (model.weights: none): there is no source task to forget")
    listing = open_source(source)
    if not listing.plain:
        raise UserError(f"{source}: forgetting is measured on one class of each image; name a source that says nothing else")
    built = _as_it_came(run.model, listing, source, restored)
    task = build_task(classify.Config(), listing.facts)

    def measured() -> tuple[dict[str, float], int]:
        evaluation, _ = figures(run, task, listing, built.network, restored.spec, device)
        return {name: evaluation.metrics[name] for name in METRICS}, int(evaluation.details["samples"])

    before, samples = measured()
    _take_trunk(built, restored.network)
    after, _ = measured()
    return Forgetting(source, samples, before, after, restored.step)


def note(folder: RunDir, found: Forgetting) -> None:
    """Put it into the run's summary, where tables and reports find it."""
    summary = folder.read_json(folder.summary)
    summary["forgetting"] = found.as_json()
    told = {"source/accuracy": found.after["accuracy"], "source/forgetting": found.forgotten}
    summary["final"] = {**(summary.get("final") or {}), **told}
    write_atomically(folder.summary, json.dumps(summary, indent=1) + "\n")


def at_the_end(folder: RunDir, source: str, device: torch.device) -> None:
    """Measure a run that is done by its best weights and note it; a failure is told and costs nothing else."""
    try:
        found = forgetting(restore(folder, "best"), source, device)
        note(folder, found)
    except (GraftError, OSError, RuntimeError) as error:  # RuntimeError: out of memory
        log.warning("evaluate.source was not measured: %s", error)
    else:
        log.info("%s", found.text())


def _as_it_came(model: Model, listing: Listing, source: str, restored: Restored) -> Built:
    """The network with the head of its weights, whose rows are put into the order of the listing's classes."""
    adapt = model.adapt.model_copy(update={"head": "auto", "layers": None, "heads": {}, "image_size": restored.spec.image_size})
    config = model.model_copy(update={"adapt": adapt})
    outputs = (Output("", listing.classes),)
    built, drawn = as_given(config, restored.run.data.normalize, outputs)
    if drawn:
        few = ", ".join(listing.classes[:4])
        raise UserError(
            f"{source}: the weights {model.weights} of {model.source} have no head for its {len(listing.classes)} classes "
            f"({few}…): {drawn[0]} would be random; give samples of the classes that the weights were trained for, by their names"
        )
    return replace(built, network=built.network.eval().requires_grad_(False))


def _take_trunk(built: Built, trained: nn.Module) -> None:
    """Copy all that is not the head from the trained network. Raises UserError when nothing is shared."""
    values = trained.state_dict()
    taken = 0
    with torch.no_grad():
        for name, value in built.network.state_dict().items():
            in_head = any(name.startswith(f"{head}.") for head in built.head)
            if not in_head and name in values and values[name].shape == value.shape:
                value.copy_(values[name])
                taken += 1
    if not taken:
        raise UserError("the trained network shares no layer with the one it came from: what it forgot cannot be measured")
