"""What of a run is in its checkpoints: from its parts to tensors by file, and back."""

from __future__ import annotations

import logging
from typing import Any

import torch

from trainer import rivals
from trainer.checkpoint import Loaded, Saver, Store, Tensors
from trainer.config import RefusedError
from trainer.optim import Average, FreeAverage
from trainer.parts import Parts
from trainer.runtime import Runtime
from trainer.spec import Piece
from trainer.tasks.base import Generates
from trainer.track.tracker import Tracker

log = logging.getLogger("graft")


def tensors(parts: Parts) -> dict[str, dict[str, torch.Tensor | Piece]]:
    """What a checkpoint holds of this rank, by file: the network, its average, and the optimizer's state by parameter name."""
    phase, engine = parts.phase, parts.engine
    files = {f"{phase.name}.safetensors": engine.weights(phase.network)}
    files[f"{phase.name}-optimizer.safetensors"] = engine.state()[0]
    if isinstance(parts.average, FreeAverage):
        files[f"{phase.name}-average.safetensors"] = dict(parts.average.state)
    elif parts.average is not None:
        files[f"{phase.name}-average.safetensors"] = engine.averaged(phase.network, parts.average.state)
    if parts.objective is not None and parts.objective.state_dict():
        files[f"{phase.name}-objective.safetensors"] = engine.weights(parts.objective)
    return files | rivals.tensors(parts.others)


def saver(store: Store, tracker: Tracker | None, parts: Parts) -> Saver:
    """Of rank 0 or, where every rank saves what it holds, of each."""
    named = [item for file in tensors(parts).values() for item in file.items()]
    values = [(name, held.values if isinstance(held, Piece) else held) for name, held in named]
    meant = frozenset(name for name, value in values if value.is_floating_point() and not value.isfinite().all())
    if tracker is None:
        return Saver(store, before_write=lambda: None, on_commit=lambda step: None, meant=meant, others=parts.runtime.savers)
    return Saver(
        store, before_write=tracker.sync, on_commit=tracker.committed, on_cost=tracker.costs.append, meant=meant,
        others=parts.runtime.savers,
    )  # fmt: skip


def generator_state(parts: Parts) -> dict[str, Any]:
    """What whoever goes on with a generator must know of it."""
    task, beside = parts.task, parts.built.beside
    if not isinstance(task, Generates) or beside is None:
        return {}
    asked = task.generator
    return {
        "classes": [] if asked.text else list(asked.classes), "dropped": asked.dropped, "channels": beside.channels,
        "size": beside.size, "schedule": dict(task.schedule()), "vae": None if beside.vae is None else beside.vae.source,
        "text": None if beside.text is None else beside.text.source, "source": beside.source,
    }  # fmt: skip


def find(store: Store, runtime: Runtime) -> Loaded | None:
    """The newest intact checkpoint, chosen and checked by rank 0; the others read the same folder. Raises RefusedError."""
    found: Loaded | None = None
    problem = ""
    if runtime.main:
        store.clean()
        try:
            found = store.last_good()
        except RefusedError as error:
            problem = str(error)
    problem, found = runtime.from_main((problem, found))
    if problem:
        raise RefusedError(problem)
    return found


def restore(parts: Parts, files: dict[str, Tensors], extra: dict[str, Any]) -> None:
    """Put a checkpoint's tensors back: the inverse of `tensors`.

    With settings that were changed since (`--accept-changes`), an average goes on for what it held and begins with the weights
    for the rest, other losses begin anew, and another kind of optimizer begins without a state.
    """
    phase, engine = parts.phase, parts.engine
    engine.fill(phase.network, files[f"{phase.name}.safetensors"])
    if isinstance(parts.average, Average):
        held = files.get(f"{phase.name}-average.safetensors", Tensors())
        parts.average.restore(engine.held(phase.network, held))
    if parts.objective is not None:
        _restore_losses(parts, files.get(f"{phase.name}-objective.safetensors", Tensors()))
    kind = parts.run.optimizer_identity
    if extra.get("optimizer", kind) != kind:
        log.warning("the optimizer was %s and is %s now: it begins without a state", extra["optimizer"], kind)
    else:
        engine.restore(files[f"{phase.name}-optimizer.safetensors"], extra.get("optimizer_state", {}))
    rivals.restore(parts.others, files, extra.get("others", {}), optimizers=extra.get("optimizer", kind) == kind)
    if parts.runtime.scaler is not None and "scaler" in extra:
        parts.runtime.scaler.load_state_dict(extra["scaler"])


def _restore_losses(parts: Parts, held: Tensors) -> None:
    assert parts.objective is not None
    try:
        parts.engine.fill(parts.objective, held)
    except RefusedError as error:  # the settings are the same, or the change of them was accepted
        log.warning("what the losses learnt does not fit the run file any more and begins anew: %s", error)
