"""What a phase minimises: the losses of its task and further ones, weighted and balanced."""

from __future__ import annotations

import importlib
from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from typing import Any

import torch
from torch import nn

from trainer.config import UserError, nearest
from trainer.config.base import Kind
from trainer.config.objective import Losses
from trainer.losses.balances.base import Balance, Scale
from trainer.losses.base import Ground, Loss, Reference, Seen
from trainer.tasks.base import Task, loss_names


class Plain:
    """The task's only loss, as it is."""

    def __init__(self, task: Task) -> None:
        self._task = task

    def __call__(self, module: nn.Module, batch: Any) -> torch.Tensor:
        """One value a sample, [n]."""
        (losses,) = self._task.losses(self._task.run(module, batch), batch).values()
        return losses


class Objective(nn.Module):
    """The losses of a task and further ones, each times its weight, made one by a balance.

    Called with a module and a batch it gives [n, 1 + 2k]: what is minimised, then for the record each loss as it is and each
    weight. `columns` names the record. Its parameters and buffers are what the losses and the balance learn and remember.
    """

    def __init__(
        self, task: Task, names: Sequence[str], further: Mapping[str, Loss], factors: torch.Tensor, ground: Ground
    ) -> None:
        super().__init__()
        self._task, self.names, self._ground = task, tuple(names), ground
        self.further = nn.ModuleDict({f"@{name}": loss for name, loss in further.items()})  # else `type` would be no name
        self.balance: Balance | None = None
        self.register_buffer("_factors", factors, persistent=False)

    @property
    def columns(self) -> tuple[str, ...]:
        return (*(f"loss/{name}" for name in self.names), *(f"weight/{name}" for name in self.names))

    @property
    def references(self) -> Mapping[str, Reference]:
        """The networks that it looks at."""
        return self._ground.references

    def forward(self, module: nn.Module, batch: Any) -> torch.Tensor:
        """[n, 1 + 2k]."""
        balance, references = self.balance, self._ground.references
        assert balance is not None
        with ExitStack() as stack:
            stack.enter_context(self._ground.taps.listening())
            for reference in references.values():
                stack.enter_context(reference.taps.listening())
            output = self._task.run(module, batch)
            answers = {name: ref.told(self._task.logits(ref.answer(batch.images))) for name, ref in references.items()}
            losses = self._task.losses(output, batch)
            seen = Seen(self._task.logits(output), answers)
            losses |= {name.removeprefix("@"): loss(seen) for name, loss in self.further.items()}
        each = torch.stack([losses[name].float() for name in self.names], dim=1)
        factors = self.get_buffer("_factors")
        total = balance(each * factors)
        weights = (balance.weights.detach() * factors).expand_as(each)
        return torch.cat([total[:, None], each.detach(), weights], dim=1)


class Learner(nn.Module):
    """A network with what its losses learn: what is put around a network for several ranks is put around both."""

    def __init__(self, network: nn.Module, objective: Objective) -> None:
        super().__init__()
        self.network, self.objective = network, objective

    def forward(self, *given: Any) -> Any:
        """What the network gives."""
        return self.network(*given)


def objective(config: Losses, task: Task, ground: Ground, seed: int) -> Objective:
    """Put the losses of the run file together; the balance comes later, with `balanced`. What is learnt is drawn from `seed`.

    Raises UserError for weights of losses that there are not, and what a loss does not find.
    """
    own = loss_names(task)
    for name in config.add:
        if name in own:
            raise UserError(f"losses.add: '{name}' is a loss of the task's own; give the further one another name")
    names = [*own, *config.add]
    for name in config.weights:
        if name not in names:
            raise UserError(f"losses.weights: there is no loss '{name}'{nearest(name, names)}; there are {', '.join(names)}")
    factors = torch.tensor([config.weights.get(name, 1.0) for name in names])
    if not bool(factors.any()):
        raise UserError("losses.weights: all are 0, which leaves nothing to learn from")
    with torch.random.fork_rng(devices=[]):
        torch.default_generator.manual_seed(seed)
        further = {name: _loss(loss, ground, f"losses.add.{name}") for name, loss in config.add.items()}
    return Objective(task, names, further, factors, ground)


def balanced(config: Kind, made: Objective, scale: Scale) -> Balance:
    """Give an objective its balance. Raises UserError where it cannot work."""
    if config.kind != "fixed" and len(made.names) == 1:
        raise UserError(f"losses.balance: {config.kind} balances several losses, and there is one; add another, or leave it out")
    made.balance = importlib.import_module(f"trainer.losses.balances.{config.kind}").build(config, scale)
    return made.balance


def _loss(config: Kind, ground: Ground, key: str) -> Loss:
    loss: Loss = importlib.import_module(f"trainer.losses.{config.kind}").build(config, ground, key)
    return loss
