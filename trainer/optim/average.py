"""Averages of the weights: what is evaluated in place of the weights that learn."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import nn


class Average:
    """An exponential moving average of the learning parameters, and a copy of the buffers (Polyak and Juditsky 1992).

    The decay rises as (1 + step) / (10 + step) up to its value, so that a short run does not keep its first weights.
    """

    def __init__(self, network: nn.Module, decay: float) -> None:
        self._decay, self._network = decay, network
        everything = network.state_dict(keep_vars=True)
        # Frozen parameters do not move: the average is over what learns, and buffers follow.
        self._learning = [n for n, v in everything.items() if isinstance(v, nn.Parameter) and v.requires_grad]
        self._buffers = [n for n, v in everything.items() if not isinstance(v, nn.Parameter)]
        self._source = {name: everything[name] for name in (*self._learning, *self._buffers)}
        # A tensor with two names (tied layers) has one average with two names, moved and exchanged once.
        first = {id(value): name for name, value in reversed(self._source.items())}
        own = {name: value.detach().clone() for name, value in self._source.items() if first[id(value)] == name}
        self.state = {name: own[first[id(value)]] for name, value in self._source.items()}
        self._learning = [name for name in self._learning if name in own]
        self._buffers = [name for name in self._buffers if name in own]

    @torch.no_grad()
    def update(self, step: int) -> None:
        """Move towards the weights after optimizer step number `step` (from 1)."""
        decay = min(self._decay, (1 + step) / (10 + step))
        torch._foreach_lerp_([self.state[n] for n in self._learning], [self._source[n].data for n in self._learning], 1 - decay)
        if self._buffers:
            torch._foreach_copy_([self.state[n] for n in self._buffers], [*self._now().values()])

    def _now(self) -> dict[str, torch.Tensor]:
        """The buffers as the network holds them now: what is put around it for several ranks gives it others."""
        held = dict(self._network.named_buffers(remove_duplicate=False))
        return {name: held[name] for name in self._buffers}

    @torch.no_grad()
    def restore(self, tensors: Mapping[str, torch.Tensor]) -> None:
        """Take a saved average over; what it lacks begins with the weights as they are."""
        now = self._now()
        for name, value in self.state.items():
            value.copy_(tensors.get(name, now.get(name, self._source[name])))

    @torch.no_grad()
    def swap(self) -> None:
        """Exchange the averaged and the current weights; twice restores both."""
        for name, value in {**{name: self._source[name] for name in self._learning}, **self._now()}.items():
            held = value.data.clone()
            value.data.copy_(self.state[name])
            self.state[name].copy_(held)


class FreeAverage:
    """The average that a schedule-free optimizer (Defazio et al. 2024) evaluates with, worked out from its state when asked for.

    The network holds y, where gradients are taken; the average is x = y + (1 - 1 / beta) (z - y). The optimizer's own switch
    (`eval`, `train`) works x and y out of one another and rounds each time; here y is kept and put back, so that evaluating and
    saving change nothing. Statistics of BatchNorm are those that were seen at y.
    """

    def __init__(self, network: nn.Module, optimizer: torch.optim.Optimizer) -> None:
        self._network, self._optimizer = network, optimizer
        self._kept: dict[str, torch.Tensor] | None = None

    @property
    def state(self) -> dict[str, torch.Tensor]:
        """x by name, and a copy of the buffers."""
        places = {parameter: group for group in self._optimizer.param_groups for parameter in group["params"]}
        found = {}
        for name, value in self._network.state_dict(keep_vars=True).items():
            if isinstance(value, nn.Parameter) and value in places:
                found[name] = self._x(value, places[value])
            elif not isinstance(value, nn.Parameter):
                found[name] = value.detach().clone()
        return found

    def _x(self, parameter: nn.Parameter, group: dict[str, Any]) -> torch.Tensor:
        z = self._optimizer.state[parameter].get("z") if parameter in self._optimizer.state else None
        y = parameter.detach()
        if z is None:
            return y.clone()
        beta = group["betas"][0] if "betas" in group else group["momentum"]
        return y.lerp(z.to(y.device), 1 - 1 / beta)

    def update(self, step: int) -> None:
        """Nothing: the optimizer averages."""

    def restore(self, tensors: Mapping[str, torch.Tensor]) -> None:
        """Nothing: x follows from the weights and the optimizer's state."""

    @torch.no_grad()
    def swap(self) -> None:
        """Put x in place of y; the second call puts y back, to the bit."""
        own = self._network.state_dict(keep_vars=True)
        if self._kept is None:
            averaged = {name: value for name, value in self.state.items() if isinstance(own[name], nn.Parameter)}
            self._kept = {name: own[name].detach().clone() for name in averaged}
            values = averaged
        else:
            values, self._kept = self._kept, None
        for name, value in values.items():
            own[name].data.copy_(value)
