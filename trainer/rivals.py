"""A second phase: a network that learns against the first one, with an optimizer of its own."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial

import torch
from torch import nn

from trainer.checkpoint import Tensors
from trainer.config import Run, UserError
from trainer.config.tasks.gan import Config as Gan
from trainer.data.order import mix
from trainer.models import Built
from trainer.models.critic import Several, build_critic
from trainer.optim import build_optimizer
from trainer.runtime import Engine, Runtime
from trainer.spec import ParamGroup, Piece
from trainer.strategies.blocks_of import blocks_of
from trainer.tasks.base import Phase, Task, Translates
from trainer.tasks.duel import SHARE
from trainer.tasks.opposing import Duels

CRITIC = 6  # the stream that its weights are drawn from
Files = dict[str, dict[str, torch.Tensor | Piece]]


@dataclass(frozen=True)
class Rival:
    """A further phase, and what its ranks hold of it."""

    phase: Phase
    engine: Engine


def rivals(run: Run, runtime: Runtime, task: Task, built: Built) -> tuple[Rival, ...]:
    """The further phases of a task, on their device; none of most. Raises UserError."""
    if isinstance(task, Duels):
        return (_duel(run, runtime, task, built),)
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


def _duel(run: Run, runtime: Runtime, task: Duels, built: Built) -> Rival:
    """The critic that came with a generator. Raises UserError where more of it is to be frozen than it has."""
    assert isinstance(run.task, Gan)
    assert built.critic is not None
    network, asked = built.critic.to(runtime.device), run.task.critic
    blocks = blocks_of(network, built.critic_head)
    if asked.frozen > len(blocks):
        raise UserError(f"task.critic.frozen is {asked.frozen}, and the critic has {len(blocks)} blocks; write that or less")
    still = {name for block in blocks[: asked.frozen] for name in block.parameters}
    for name, parameter in network.named_parameters():
        parameter.requires_grad_(name not in still)
    groups = [ParamGroup([item for item in network.named_parameters() if item[0] not in still], asked.rate)]
    opposing = task.oppose(network, run.train.global_batch, runtime.sum_over_ranks)
    make = partial(build_optimizer, run.optimizer, apart=None, fused=runtime.computing.fused)
    # left whole: worked out again, it would no longer stand still, as it does while the generator learns
    engine = runtime.engine(network, network, groups, make, None)
    phase = Phase("critic", network, engine, opposing, opposing.stage, opposing.columns, opposing.settle)
    return Rival(phase, engine)


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
    """The inverse of `tensors` and `states`; a phase that the checkpoint has not (its task was changed) begins anew,
    and so does the share of changed images, where it did not follow the critic before.

    `optimizers`: these are of the same kind as before.
    """
    for other in others:
        name = other.phase.name
        if f"{name}.safetensors" not in files:
            continue
        with _as_saved(other.phase.network, files[f"{name}.safetensors"]):
            other.engine.fill(other.phase.network, files[f"{name}.safetensors"])
        packed = states.get(name)
        if optimizers:
            other.engine.restore(files[f"{name}-optimizer.safetensors"], packed if isinstance(packed, dict) else {})


@contextmanager
def _as_saved(network: nn.Module, tensors: Tensors) -> Iterator[None]:
    """With a share of changed images among the buffers where the checkpoint has one, and there alone."""
    own = network.get_buffer(SHARE) if hasattr(network, SHARE) else None
    if (own is not None) == (SHARE in tensors):
        yield
        return
    if own is None:
        network.register_buffer(SHARE, tensors[SHARE])
    else:
        delattr(network, SHARE)
    yield
    if own is None:
        delattr(network, SHARE)
    else:
        network.register_buffer(SHARE, own)
