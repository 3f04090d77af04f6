"""A second phase: a network that learns against the first one, with an optimizer of its own."""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial

import torch

from trainer.checkpoint import Tensors
from trainer.config import Run
from trainer.data.order import mix
from trainer.models import Built
from trainer.models.critic import Several, build_critic
from trainer.optim import build_optimizer
from trainer.runtime import Engine, Runtime
from trainer.spec import ParamGroup, Piece
from trainer.tasks.base import Phase, Task, Translates

CRITIC = 6  # the stream that its weights are drawn from
Files = dict[str, dict[str, torch.Tensor | Piece]]


@dataclass(frozen=True)
class Rival:
    """A further phase, and what its ranks hold of it."""

    phase: Phase
    engine: Engine


def rivals(run: Run, runtime: Runtime, task: Task, built: Built) -> tuple[Rival, ...]:
    """The further phases of a task, on their device; none of most. Raises UserError."""
    wanted = task.critic() if isinstance(task, Translates) else None
    if wanted is None or not isinstance(task, Translates):
        return ()
    several, size = (wanted if isinstance(wanted, tuple) else (wanted,)), built.spec.image_size
    seeds = [mix(run.train.seed, CRITIC, *([place] if place else [])) for place in range(len(several))]
    critics = [build_critic(one, size, drawn) for one, drawn in zip(several, seeds, strict=True)]
    network = (Several(critics) if isinstance(wanted, tuple) else critics[0]).to(runtime.device)
    groups = [ParamGroup(list(network.named_parameters()), several[0].rate)]
    make = partial(build_optimizer, run.optimizer, apart=None, fused=runtime.computing.fused)
    engine = runtime.engine(network, network, groups, make, list(network.children()))
    return (Rival(Phase("critic", network, engine, task.oppose(network)), engine),)


def tensors(others: tuple[Rival, ...]) -> Files:
    """What a checkpoint holds of them, by file: the network, and the optimizer's state by parameter name."""
    files: Files = {}
    for other in others:
        files[f"{other.phase.name}.safetensors"] = other.engine.weights(other.phase.network)
        files[f"{other.phase.name}-optimizer.safetensors"] = other.engine.state()[0]
    return files


def states(others: tuple[Rival, ...]) -> dict[str, object]:
    """What of the optimizers' state is no tensor, by phase."""
    return {other.phase.name: other.engine.state()[1] for other in others}


def restore(others: tuple[Rival, ...], files: dict[str, Tensors], states: dict[str, object], *, optimizers: bool) -> None:
    """The inverse of `tensors` and `states`; a phase that the checkpoint has not (its task was changed) begins anew.

    `optimizers`: these are of the same kind as before.
    """
    for other in others:
        name = other.phase.name
        if f"{name}.safetensors" not in files:
            continue
        other.engine.fill(other.phase.network, files[f"{name}.safetensors"])
        packed = states.get(name)
        if optimizers:
            other.engine.restore(files[f"{name}-optimizer.safetensors"], packed if isinstance(packed, dict) else {})
