"""What engines have in common whose ranks hold pieces: optimizer and average work on each rank's own values.

Every parameter that learns has a `Share`: the 32-bit values that this rank's optimizer moves, one behind the other. The optimizer
must treat each value by itself (`trainer.optim.elementwise`), so that it does not matter how they are cut.
"""

from __future__ import annotations

import logging
import math
from abc import abstractmethod
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
import torch.distributed as dist
from torch import nn

from trainer.checkpoint import Tensors
from trainer.config import RefusedError, nearest
from trainer.optim.state import GROUP, counts_on_device, group_counters, set_group_counters
from trainer.runtime.engine import Engine, Held, named
from trainer.spec import ParamGroup, Piece

if TYPE_CHECKING:
    from trainer.runtime.ranks import Runtime

log = logging.getLogger("graft")


@dataclass(frozen=True)
class Share:
    """Of a parameter: `piece` lies in the optimizer's own parameter `owner` from place `offset` on."""

    owner: torch.Tensor
    offset: int
    piece: Piece


class Sharded(Engine):
    """`_shares`: by name, of what the optimizer holds now. They stay where they are until the next `_arrange`."""

    def __init__(self, runtime: Runtime, module: nn.Module, network: nn.Module, groups: Sequence[ParamGroup]) -> None:
        self._runtime, self._inner, self.network, self.groups = runtime, module, network, groups
        self._begins = True  # a step
        self._shares: dict[str, Share] = {}
        self._pieces: dict[nn.Parameter, Piece] = {}

    @abstractmethod
    def _find(self) -> dict[str, Share]:
        """Where the optimizer has its values."""

    def _elsewhere(self, parameter: nn.Parameter) -> Piece | None:
        """What this rank holds of a parameter that is not the optimizer's; none where it holds all of it."""
        return None

    def _arrange(self) -> None:
        self._shares = self._find()
        self._pieces = {p: self._shares[name].piece for name, p in named(self.groups) if name in self._shares}

    def _piece(self, parameter: nn.Parameter) -> Piece | None:
        return self._pieces[parameter] if parameter in self._pieces else self._elsewhere(parameter)

    def _began(self) -> list[ParamGroup]:
        """The groups that learn now: the first ones, since they stand in the order of their starts."""
        return [group for group in self.groups if group.parameters[0][1].requires_grad]

    def _follow_buffers(self, module: nn.Module) -> None:
        """Buffers follow rank 0 at the first forward pass of a step, as under DistributedDataParallel, so that its state is the
        run's."""
        buffers: dict[torch.dtype, list[torch.Tensor]] = {}
        for buffer in self._inner.buffers():
            buffers.setdefault(buffer.dtype, []).append(buffer)

        def follow(*_: Any) -> None:
            if self._begins and torch.is_grad_enabled():
                self._begins = False
                for alike in buffers.values():
                    flat = torch.cat([buffer.reshape(-1) for buffer in alike])
                    dist.broadcast(flat, src=0)
                    for buffer, values in zip(alike, torch.split(flat, [b.numel() for b in alike]), strict=True):
                        buffer.copy_(values.view_as(buffer))

        if self._runtime.world > 1 and buffers:
            module.register_forward_pre_hook(follow)

    def clear(self) -> None:
        self._begins = True

    def weights(self, module: nn.Module) -> Held:
        found: Held = {}
        for name, value in module.state_dict(keep_vars=True).items():
            piece = self._piece(value) if isinstance(value, nn.Parameter) else None
            if piece is not None:
                if piece.values.numel():
                    found[name] = piece
            elif self._runtime.main:
                found[name] = value.detach()
        return found

    @torch.no_grad()
    def fill(self, module: nn.Module, tensors: Tensors) -> None:
        own = module.state_dict(keep_vars=True)
        pieces = {n: self._piece(v) if isinstance(v, nn.Parameter) else None for n, v in own.items()}
        for name in [*own, *tensors.names]:
            if name not in tensors:
                raise RefusedError(f"the checkpoint lacks '{name}', which the network has{nearest(name, tensors.names)}")
            if name not in own:
                raise RefusedError(f"the checkpoint has '{name}', which the network lacks{nearest(name, own)}")
            piece = pieces[name]
            shape = tuple(own[name].shape) if piece is None else piece.shape
            if tensors.shape(name) != shape:
                raise RefusedError(f"'{name}' is {list(tensors.shape(name))} in the checkpoint and {list(shape)} in the network")
        for name, value in own.items():
            piece = pieces[name]
            if piece is None:
                value.detach().copy_(tensors[name])
            else:
                piece.values.copy_(tensors.piece(name, piece.start, piece.values.numel()))
        self.publish()

    def moving(self, network: nn.Module) -> dict[str, torch.Tensor]:
        return {name: piece.values for name, piece in self._places(network).items()}

    def averaged(self, network: nn.Module, average: Mapping[str, torch.Tensor]) -> Held:
        found: Held = {}
        places = self._places(network)
        for name, value in average.items():
            if name not in places:
                if self._runtime.main:
                    found[name] = value
            elif value.numel():
                found[name] = Piece(value, places[name].start, places[name].shape)
        return found

    def held(self, network: nn.Module, tensors: Tensors) -> Callable[[str], torch.Tensor | None]:
        places = self._places(network)

        def find(name: str) -> torch.Tensor | None:
            if name not in tensors:
                return None
            place = places.get(name)
            return tensors[name] if place is None else tensors.piece(name, place.start, place.values.numel())

        return find

    def _places(self, network: nn.Module) -> dict[str, Piece]:
        """The pieces of what the optimizer holds, by the names in the network's state_dict."""
        own = network.state_dict(keep_vars=True).items()
        return {name: self._pieces[p] for name, p in own if isinstance(p, nn.Parameter) and p in self._pieces}

    def state(self) -> tuple[Held, dict[str, Any]]:
        found: Held = {}
        for name, share in self._shares.items():
            count = share.piece.values.numel()
            for key, value in self.optimizer.state.get(share.owner, {}).items() if count else ():
                if value.dim() == 0:
                    found[f"{name}.{key}"] = value
                else:
                    values = value.reshape(-1)[share.offset : share.offset + count]
                    found[f"{name}.{key}"] = Piece(values, share.piece.start, share.piece.shape)
        tensors, values = group_counters(self.optimizer)
        return found | (tensors if self._runtime.main else {}), {"values": values, "host": []}

    @torch.no_grad()
    def restore(self, tensors: Tensors, packed: Mapping[str, Any]) -> None:
        """Every rank decides from the names alone, and so the same: where some parameters of one owner have a state and others
        not, or another count of steps, they begin anew together."""
        keys: dict[str, dict[str, str]] = {}
        for name in tensors.names:
            owner, _, key = name.rpartition(".")
            keys.setdefault(owner, {})[key] = name
        set_group_counters(self.optimizer, {n: tensors[n] for n in tensors.names if n.startswith(GROUP)}, packed)
        for names in self._together():
            held = [keys.get(name, {}) for name in names]
            if not any(held):
                continue
            counts = {tuple((key, float(tensors[full])) for key, full in h.items() if not tensors.shape(full)) for h in held}
            if len({frozenset(h) for h in held}) > 1 or len(counts) > 1:
                log.warning("%s and those beside it: not all have a state in the checkpoint; they begin without one", names[0])
                continue
            for name, given in zip(names, held, strict=True):
                share = self._shares.get(name)
                if share is not None and share.piece.values.numel():
                    self._put(share, {key: (tensors, full) for key, full in given.items()})

    def _put(self, share: Share, given: Mapping[str, tuple[Tensors, str]]) -> None:
        state, count = self.optimizer.state[share.owner], share.piece.values.numel()
        for key, (tensors, full) in given.items():
            if not tensors.shape(full):
                value = tensors[full]
                state.setdefault(key, value.to(share.owner.device) if counts_on_device(self.optimizer) else value)
                continue
            if key not in state:
                state[key] = torch.zeros_like(share.owner, requires_grad=False)
            state[key].view(-1)[share.offset : share.offset + count].copy_(tensors.piece(full, share.piece.start, count))

    def _together(self) -> list[list[str]]:
        """The names whose values share an owner, on one rank or another."""
        return [[name] for name in self._shares]


def agreed_norm(own: torch.Tensor, world: int) -> torch.Tensor:
    """The norm over all ranks from each rank's own; the same bits on each."""
    if world == 1:
        return own
    total = own.square()
    dist.all_reduce(total)
    return total.sqrt()


def rows(shape: Sequence[int], rank: int, world: int) -> tuple[int, int]:
    """Start and count of a rank's values of a tensor whose first dimension is cut into equal chunks, the last ones shorter."""
    chunk = -(-shape[0] // world)
    begin, end = (min(place, shape[0]) for place in (rank * chunk, (rank + 1) * chunk))
    size = math.prod(shape[1:])
    return begin * size, (end - begin) * size
