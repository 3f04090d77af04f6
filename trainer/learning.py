"""From `losses` in the run file to what a phase minimises, with the networks that it looks at."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import partial

import torch

from trainer.config import RefusedError, Run, UserError
from trainer.config.amounts import Amount
from trainer.losses.balances.adatask import Apart
from trainer.losses.balances.base import Scale
from trainer.losses.base import Ground, Reference
from trainer.losses.objective import Objective, balanced, objective
from trainer.losses.taps import Taps
from trainer.models import Built
from trainer.references import block_names, fingerprint, start, teacher
from trainer.runtime import Runtime
from trainer.spec import ParamGroup
from trainer.tasks.base import Task

_WORDS = {
    "teacher": "losses.teacher",
    "start": "the network that the run came from",
    "vae": "task.vae",
    "text": "the text encoder of the pipeline",
    "perceptual": "task.perceptual.features",
    "lpips": "the network of task.lpips",
    "prior": "task.prior",
}
PREFIX = "@objective."  # of names in the optimizer's state: no network's parameter begins so


@dataclass
class References:
    """The networks that losses look at, made before the strategy changes the one that learns; `values`: as that one came."""

    found: dict[str, Reference] = field(default_factory=dict)
    values: dict[str, torch.Tensor] = field(default_factory=dict)

    @property
    def fingerprints(self) -> dict[str, str]:
        return {name: fingerprint(reference.network) for name, reference in self.found.items()}


def references(
    run: Run, runtime: Runtime, built: Built, task: Task, *, by_turns: Callable[[Callable[[], Reference]], Reference],
    load_weights: bool = True,
) -> References:  # fmt: skip
    """The teacher, and the network as it came, as far as losses look at them. Raises UserError."""
    losses, result = run.losses, References()
    if losses.teacher is not None:
        answers = any(loss.kind == "logits" for loss in losses.add.values())
        make = partial(
            teacher,
            losses.teacher,
            run.data.normalize,
            task.outputs,
            task.scale,
            built.spec,
            runtime.device,
            runtime.autocast,
            answers=answers,
            load_weights=load_weights,
        )
        result.found["teacher"] = by_turns(make)
    if any(losses.add[name].kind != "l2_sp" for name in losses.of("start")):
        result.found["start"] = start(built.network, built.head, runtime.device, runtime.autocast)
    if any(loss.kind == "l2_sp" for loss in losses.add.values()):
        result.values = {name: value.detach().clone() for name, value in built.network.named_parameters()}
    return result


def unchanged(before: dict[str, str], now: dict[str, str]) -> None:
    """Raises RefusedError when a reference has other weights, or the prior other images, than in the last attempt."""
    for name, digest in now.items():
        if before.get(name, digest) != digest:
            held = "images" if name == "prior" else "weights"
            raise RefusedError(
                f"{_WORDS[name]} has other {held} now than in the last attempt, which would pull the run elsewhere; bring the "
                "old ones back, give the run another name, or pass --accept-changes"
            )


def build_objective(
    run: Run, runtime: Runtime, built: Built, task: Task, given: References, groups: Sequence[ParamGroup], seed: int,
    samples: Callable[[Amount | float], int],
) -> Objective:  # fmt: skip
    """What the run minimises, on its device. Raises UserError for what does not fit the network."""
    network, head = built.network, built.head
    learning = [(name, parameter) for group in groups for name, parameter in group.parameters]
    pretrained = given.values.keys() - set(built.fresh)
    device = runtime.device
    ground = Ground(
        network, task.outputs, built.spec, Taps(network, "the network"), block_names(network, head), dict(given.found),
        held=[(p, given.values[n].to(device)) for n, p in learning if n in pretrained],
        new=[p for n, p in learning if n not in pretrained],
    )  # fmt: skip
    if (held := run.losses.of("start")) and all(any(n.startswith(f"{h}.") for h in head) for n, _ in learning):
        raise UserError(
            f"losses.add.{held[0]} holds the trunk to what it was, and no layer of the trunk learns; leave it out, or choose "
            "another strategy"
        )
    made = objective(run.losses.model_copy(update={"weights": run.weights}), task, ground, seed)
    first = {parameter for group in groups if group.start == 0 for _, parameter in group.parameters}
    ordered = [(name, parameter) for name, parameter in network.named_parameters() if parameter in first]
    if run.losses.balance.kind == "adatask":
        ordered = learning  # also what begins later
    scale = Scale(made.names, ordered, head, run.train.global_batch, runtime.sum_over_ranks, samples)
    balanced(run.losses.balance, made, scale)
    return made.to(device)


def learnt_by(made: Objective, rate: float) -> list[ParamGroup]:
    """The groups of what the losses and their balance learn themselves."""
    named = [(f"{PREFIX}{name}", p) for name, p in made.named_parameters()]
    own = [item for item in named if item[0].startswith(f"{PREFIX}balance.")]
    other = [item for item in named if item not in own]
    return [ParamGroup(group, factor, decay=False) for group, factor in ((other, 1.0), (own, rate)) if group]


def gradients_apart(made: Objective | None) -> Callable[[], dict[torch.Tensor, list[torch.Tensor]]] | None:
    """The gradients of each loss by itself, where the balance keeps them for the optimizer."""
    balance = None if made is None else made.balance
    return (lambda: balance.gradients) if isinstance(balance, Apart) else None
