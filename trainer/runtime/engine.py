"""A network as the ranks train it: what is put around it, its optimizer, and what each rank holds of both."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from typing import TYPE_CHECKING, Any

import torch
from torch import nn

from trainer.checkpoint import Tensors, fill
from trainer.config import UserError
from trainer.optim import pack, unpack
from trainer.spec import ParamGroup, Piece

if TYPE_CHECKING:
    from trainer.runtime.ranks import Runtime

Make = Callable[[Sequence[ParamGroup]], torch.optim.Optimizer]
Held = dict[str, torch.Tensor | Piece]


class Engine(ABC):
    """A network, put together for its ranks, with its optimizer: one for each phase.

    `module` is what learns (called, then `backward` with its loss), `network` the bare network in it, `called` what is called
    without a gradient; `groups` is what learns, now or later; `rates` are the optimizer's groups with the learning rates that the
    schedule multiplies. Where `lockstep`, the ranks meet in every forward pass: each must make as many as the others; where
    `meets_early`, in forward or backward passes before the last of a step.
    """

    lockstep = False
    meets_early = False
    module: nn.Module
    network: nn.Module
    called: nn.Module
    groups: Sequence[ParamGroup]
    optimizer: torch.optim.Optimizer
    rates: list[tuple[dict[str, Any], float]]

    def take(self, optimizer: torch.optim.Optimizer) -> None:
        """This is the optimizer from here on."""
        self.optimizer = optimizer
        self.rates = [(group, group["lr"]) for group in optimizer.param_groups]

    @abstractmethod
    def accumulating(self, last: bool) -> AbstractContextManager[Any]:
        """Around a micro-batch: forward and backward. `last`: the gradients of the step are complete with it."""

    @abstractmethod
    def backward(self, loss: torch.Tensor) -> None:
        """Add the gradients of a loss."""

    @abstractmethod
    def norm(self) -> torch.Tensor:
        """The norm of the gradients of the step over all ranks, the same on each. Raises UserError for a parameter that learns
        and got no gradient, where several ranks would wait for it."""

    @abstractmethod
    def step(self, norm: torch.Tensor, clip: float | None) -> None:
        """Take the step, its gradients cut to a norm of `clip`; `norm` is finite."""

    @abstractmethod
    def clear(self) -> None:
        """Forget the gradients, whether the step was taken or not."""

    @abstractmethod
    def regroup(self) -> None:
        """Other parameters take gradients now than before: all that this is put together for."""

    @abstractmethod
    def weights(self, module: nn.Module) -> Held:
        """What this rank saves of a module's tensors, by their names in its state_dict."""

    @abstractmethod
    def fill(self, module: nn.Module, tensors: Tensors) -> None:
        """Put saved tensors into a module: the inverse of `weights`. Raises RefusedError for those that are not its own."""

    @abstractmethod
    def state(self) -> tuple[Held, dict[str, Any]]:
        """What this rank saves of the optimizer's state, by the names in `groups`, as `optim.pack` gives it."""

    @abstractmethod
    def restore(self, tensors: Tensors, packed: Mapping[str, Any]) -> None:
        """Put a saved state back: the inverse of `state`."""

    @abstractmethod
    def moving(self, network: nn.Module) -> dict[str, torch.Tensor]:
        """The values that the optimizer moves, as this rank holds them, by their names in the network's state_dict."""

    def averaged(self, network: nn.Module, average: Mapping[str, torch.Tensor]) -> Held:
        """What this rank saves of an average of what `moving` gives, and of the buffers."""
        return dict(average)

    def held(self, network: nn.Module, tensors: Tensors) -> Callable[[str], torch.Tensor | None]:
        """Of saved tensors by name what `moving` has of them; none for a name that is not among them."""
        return tensors.get

    @abstractmethod
    def publish(self) -> None:
        """What `moving` gave was changed: the network is to compute with it."""

    def meetings(self) -> list[nn.Module]:
        """Parts of `network` before whose calls the ranks meet."""
        return []


class Whole(Engine):
    """Every rank holds everything (one rank, or DistributedDataParallel): `groups` is in the optimizer from the start, which
    passes over what takes no gradient yet."""

    def __init__(self, runtime: Runtime, module: nn.Module, network: nn.Module, groups: Sequence[ParamGroup], make: Make) -> None:
        self._runtime, self._inner, self._make = runtime, module, make
        self.network = self.called = network
        self.groups = groups
        self.take(make(groups))
        self.module = runtime.wrap(module)
        self._parameters = self._learning()

    @property
    def alone(self) -> nn.Module:
        """What learns, called without the other ranks: nothing is averaged, no buffer is sent around."""
        return self._inner

    def spare(self) -> torch.optim.Optimizer:
        """Another optimizer of the same make, without a state."""
        return self._make(self.groups)

    def _learning(self) -> list[nn.Parameter]:
        return [p for group in self.optimizer.param_groups for p in group["params"] if p.requires_grad]

    def accumulating(self, last: bool) -> AbstractContextManager[Any]:
        """Averages the gradients over the ranks only with the last micro-batch of a step."""
        if last or self._runtime.world == 1:
            return nullcontext()
        context: AbstractContextManager[Any] = self.module.no_sync()  # type: ignore[operator]
        return context

    def backward(self, loss: torch.Tensor) -> None:
        scaler = self._runtime.scaler
        (scaler.scale(loss) if scaler else loss).backward()  # type: ignore[no-untyped-call]

    def norm(self) -> torch.Tensor:
        """Of gradients that are the same on every rank: every rank comes to the same decision without a message."""
        if self._runtime.scaler:
            self._runtime.scaler.unscale_(self.optimizer)
        gradients = [p.grad for p in self._parameters if p.grad is not None]
        if self._runtime.world > 1 and len(gradients) < len(self._parameters):
            raise UserError(without_gradient(name for name, p in named(self.groups) if p.requires_grad and p.grad is None))
        return torch.nn.utils.get_total_norm(gradients)

    def step(self, norm: torch.Tensor, clip: float | None) -> None:
        if clip is not None:
            torch.nn.utils.clip_grads_with_norm_(self._parameters, clip, norm)
        self.optimizer.step()

    def clear(self) -> None:
        self.optimizer.zero_grad(set_to_none=True)

    def regroup(self) -> None:
        self.module = self._runtime.rewrap(self.module, self._inner)
        self._parameters = self._learning()

    def weights(self, module: nn.Module) -> Held:
        return dict(module.state_dict())

    def fill(self, module: nn.Module, tensors: Tensors) -> None:
        fill(module, tensors.whole())

    def state(self) -> tuple[Held, dict[str, Any]]:
        tensors, values = pack(self.optimizer, {parameter: name for name, parameter in named(self.groups)})
        return dict(tensors), values

    def restore(self, tensors: Tensors, packed: Mapping[str, Any]) -> None:
        unpack(self.optimizer, dict(named(self.groups)), tensors.whole(), packed)

    def moving(self, network: nn.Module) -> dict[str, torch.Tensor]:
        ours = {p for _, p in named(self.groups)}
        return {n: p for n, p in network.state_dict(keep_vars=True).items() if p in ours}

    def publish(self) -> None:
        """Nothing: there is one copy."""


def named(groups: Iterable[ParamGroup]) -> list[tuple[str, nn.Parameter]]:
    """All parameters of groups."""
    return [item for group in groups for item in group.parameters]


def divisible(kind: str, module: nn.Module) -> None:
    """Raises UserError for what no kind but ddp can cut: a parameter that is one number."""
    single = next((name for name, parameter in module.named_parameters() if parameter.dim() == 0), None)
    if kind != "ddp" and single is not None:
        raise UserError(
            f"parallel.kind: {kind} cannot cut '{single}' of the network, which is one number; make it a tensor of one value, or "
            "write ddp"
        )


def without_gradient(names: Iterable[str]) -> str:
    """What to do about parameters that several ranks wait for in vain."""
    found = list(names)
    more = f" and {len(found) - 4:,} more" if len(found) > 4 else ""
    return (
        f"{', '.join(found[:4])}{more} of the network got no gradient, and several ranks cannot average what is not there; "
        "take it out of the network, or let it take no gradient (requires_grad) and choose a strategy that leaves it frozen, "
        "or train with one rank"
    )
