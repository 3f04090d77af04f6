"""FSDP2: weights, gradients and optimizer state cut over the ranks, one unit of the network gathered at a time."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager, nullcontext
from typing import TYPE_CHECKING, Any

import torch
from torch import nn

from trainer.config import UserError
from trainer.runtime.engine import Make, named, without_gradient
from trainer.runtime.sharded import Sharded, Share, agreed_norm, rows
from trainer.spec import ParamGroup, Piece

if TYPE_CHECKING:
    from trainer.runtime.ranks import Runtime


class Fsdp(Sharded):
    """torch's `fully_shard` around each unit and around the rest. The optimizer holds this rank's rows of every parameter as
    parameters of its own, in the same memory."""

    lockstep = meets_early = True

    def __init__(
        self, runtime: Runtime, module: nn.Module, network: nn.Module, groups: Sequence[ParamGroup], make: Make,
        units: Sequence[nn.Module], *, offload: bool, reshard: bool,
    ) -> None:  # fmt: skip
        from torch.distributed.device_mesh import init_device_mesh
        from torch.distributed.fsdp import CPUOffloadPolicy, FSDPModule, OffloadPolicy, fully_shard

        names = [[name for name, _ in group.parameters] for group in groups]
        where = _places(module, groups)
        _untied(module)
        mesh = init_device_mesh(runtime.device.type, (runtime.world,))
        policy = CPUOffloadPolicy(pin_memory=runtime.device.type == "cuda") if offload else OffloadPolicy()
        settings: dict[str, Any] = {"mesh": mesh, "offload_policy": policy}
        for unit in units:
            fully_shard(unit, reshard_after_forward=reshard, **settings)
        fully_shard(module, reshard_after_forward=False, **settings)
        assert isinstance(module, FSDPModule)
        self._parts = [part for part in module.modules() if isinstance(part, FSDPModule)]
        if runtime.device.type == "cpu":  # gloo cannot average
            for part in self._parts:
                part.set_force_sum_reduction_for_comms(True)
        module.unshard()  # sets everything up: from here on the shards stay where they are
        module.reshard()
        own = dict(module.named_parameters())
        cut = [
            ParamGroup([(name, own[where[name]]) for name in found], group.rate, group.start, group.decay)
            for group, found in zip(groups, names, strict=True)
        ]
        super().__init__(runtime, module, network, cut)
        self.module = self.called = module
        self._local = {n: nn.Parameter(p.to_local().detach(), requires_grad=False) for n, p in named(cut)}  # type: ignore[attr-defined]
        self.take(make([_held(group, self._local) for group in cut]))
        self._arrange()
        self._follow_buffers(module)

    def accumulating(self, last: bool) -> AbstractContextManager[Any]:
        """The gradients of every micro-batch are averaged and cut at once, so that no rank ever holds them whole."""
        return nullcontext()

    def backward(self, loss: torch.Tensor) -> None:
        loss.backward()  # type: ignore[no-untyped-call]

    def norm(self) -> torch.Tensor:
        missing = []
        for name, parameter in named(self._began()):
            if parameter.grad is None:
                missing.append(name)
            else:
                self._local[name].grad = parameter.grad.to_local()  # type: ignore[attr-defined]
        if missing:
            raise UserError(without_gradient(missing))
        return agreed_norm(
            torch.nn.utils.get_total_norm([g for _, g in self._gradients()]).to(self._runtime.device), self._runtime.world
        )

    def _gradients(self) -> Iterator[tuple[nn.Parameter, torch.Tensor]]:
        for local in self._local.values():
            if local.grad is not None:
                yield local, local.grad

    def step(self, norm: torch.Tensor, clip: float | None) -> None:
        if clip is not None:
            torch.nn.utils.clip_grads_with_norm_([local for local, _ in self._gradients()], clip, norm)
        self.optimizer.step()

    def clear(self) -> None:
        super().clear()
        for name, parameter in named(self.groups):
            parameter.grad = self._local[name].grad = None

    def regroup(self) -> None:
        """A parameter is gathered into a tensor of its own, which is to take a gradient as well."""
        wanted = {name: p.requires_grad for name, p in self.module.named_parameters()}
        for part in self._parts:
            part.unshard()
        for name, whole in self.module.named_parameters():
            whole.requires_grad_(wanted[name])
        for part in self._parts:
            part.reshard()

    def meetings(self) -> list[nn.Module]:
        return [part for part in self._parts if part not in (self.module, self.network)]

    def publish(self) -> None:
        for part in self._parts:  # what is gathered still holds the old values
            part.reshard()

    def _find(self) -> dict[str, Share]:
        found = {}
        for name, parameter in named(self.groups):
            piece = self._elsewhere(parameter)
            assert piece is not None
            found[name] = Share(self._local[name], 0, piece)
        return found

    def _elsewhere(self, parameter: nn.Parameter) -> Piece | None:
        from torch.distributed.tensor import DTensor

        if not isinstance(parameter, DTensor):
            return None  # beside the module that is cut
        shape = tuple(parameter.shape)
        start, _ = rows(shape, self._runtime.rank, self._runtime.world)
        return Piece(parameter.to_local().detach().view(-1), start, shape)


def _places(module: nn.Module, groups: Sequence[ParamGroup]) -> dict[str, str]:
    """Under which names a module has the parameters of groups."""
    inside = {parameter: name for name, parameter in module.named_parameters()}
    return {name: inside[parameter] for name, parameter in named(groups)}


def _held(group: ParamGroup, local: dict[str, nn.Parameter]) -> ParamGroup:
    return ParamGroup([(name, local[name]) for name, _ in group.parameters], group.rate, group.start, group.decay)


def _untied(module: nn.Module) -> None:
    """Raises UserError for parameters of two names: cut under one of them, the other would keep the whole."""
    names: dict[nn.Parameter, str] = {}
    for name, parameter in module.named_parameters(remove_duplicate=False):
        if parameter in names:
            raise UserError(
                f"parallel.kind: fsdp cannot cut '{name}', which is '{names[parameter]}' as well; write zero3, or zero2"
            )
        names[parameter] = name
