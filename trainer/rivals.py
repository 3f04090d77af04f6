"""A second phase: a network that learns against the first one, with an optimizer of its own."""

from __future__ import annotations

import torch

from trainer.checkpoint import Tensors
from trainer.config import Run
from trainer.data.order import mix
from trainer.models import Built
from trainer.models.critic import build_critic
from trainer.optim import build_optimizer
from trainer.runtime import Runtime
from trainer.spec import ParamGroup, Piece
from trainer.tasks.base import Phase, Task, Translates

CRITIC = 6  # the stream that its weights are drawn from
Files = dict[str, dict[str, torch.Tensor | Piece]]


def rivals(run: Run, runtime: Runtime, task: Task, built: Built) -> tuple[Phase, ...]:
    """The further phases of a task, on their device; none of most. Raises UserError."""
    wanted = task.critic() if isinstance(task, Translates) else None
    if wanted is None or not isinstance(task, Translates):
        return ()
    network = build_critic(wanted, built.spec.image_size, mix(run.train.seed, CRITIC)).to(runtime.device)
    groups = [ParamGroup(list(network.named_parameters()), wanted.rate)]
    engine = runtime.engine(network, network, groups, lambda given: build_optimizer(run.optimizer, given, None))
    return (Phase("critic", network, engine, task.oppose(network)),)


def tensors(phases: tuple[Phase, ...]) -> Files:
    """What a checkpoint holds of them, by file: the network, and the optimizer's state by parameter name."""
    files: Files = {}
    for phase in phases:
        files[f"{phase.name}.safetensors"] = phase.engine.weights(phase.network)
        files[f"{phase.name}-optimizer.safetensors"] = phase.engine.state()[0]
    return files


def states(phases: tuple[Phase, ...]) -> dict[str, object]:
    """What of the optimizers' state is no tensor, by phase."""
    return {phase.name: phase.engine.state()[1] for phase in phases}


def restore(phases: tuple[Phase, ...], files: dict[str, Tensors], states: dict[str, object], *, optimizers: bool) -> None:
    """The inverse of `tensors` and `states`; a phase that the checkpoint has not (its task was changed) begins anew.

    `optimizers`: these are of the same kind as before.
    """
    for phase in phases:
        if f"{phase.name}.safetensors" not in files:
            continue
        phase.engine.fill(phase.network, files[f"{phase.name}.safetensors"])
        packed = states.get(phase.name)
        if optimizers:
            phase.engine.restore(files[f"{phase.name}-optimizer.safetensors"], packed if isinstance(packed, dict) else {})
