"""Averages of the weights: what is evaluated in place of the weights that learn."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import nn


class Average:
    """An exponential moving average of the learning parameters, and a copy of the buffers (Polyak and Juditsky 1992).

    The decay rises as (1 + step) / (10 + step) up to its value, so that a short run does not keep its first weights. `learning`
    are the values that the optimizer moves, in pieces where the ranks share them out: the average is cut as they are. `moved` is
    called when they were changed here.
    """

    def __init__(
        self, learning: Mapping[str, torch.Tensor], buffers: Mapping[str, torch.Tensor], decay: float,
        moved: Callable[[], None] = lambda: None,
    ) -> None:  # fmt: skip
        self._decay, self._moved = decay, moved
        self.state: dict[str, torch.Tensor] = {}
        self.follow(learning, buffers)

    def follow(self, learning: Mapping[str, torch.Tensor], buffers: Mapping[str, torch.Tensor]) -> None:
        """These are the values from here on. The average of what is new begins with it."""
        # Frozen parameters do not move: the average is over what learns, and buffers follow.
        self._source = {**learning, **buffers}
        # A tensor with two names (tied layers) has one average with two names, moved and exchanged once.
        first = {id(value): name for name, value in reversed(self._source.items())}
        own: dict[str, torch.Tensor] = {}
        for name, value in self._source.items():
            if first[id(value)] == name:
                own[name] = self.state[name] if name in self.state else value.detach().clone()
        self.state = {name: own[first[id(value)]] for name, value in self._source.items()}
        self._learning = [name for name in learning if name in own]
        self._buffers = [name for name in buffers if name in own]

    @torch.no_grad()
    def update(self, step: int) -> None:
        """Move towards the weights after optimizer step number `step` (from 1)."""
        decay = min(self._decay, (1 + step) / (10 + step))
        if self._learning:
            torch._foreach_lerp_(
                [self.state[n] for n in self._learning], [self._source[n].data for n in self._learning], 1 - decay
            )
        if self._buffers:
            torch._foreach_copy_([self.state[n] for n in self._buffers], [self._source[n] for n in self._buffers])

    @torch.no_grad()
    def restore(self, saved: Callable[[str], torch.Tensor | None]) -> None:
        """Take a saved average over; what it lacks begins with the weights as they are."""
        for name, value in self.state.items():
            found = saved(name)
            value.copy_(self._source[name] if found is None else found)

    @torch.no_grad()
    def swap(self) -> None:
        """Exchange the averaged and the current weights; twice restores both."""
        for name in (*self._learning, *self._buffers):
            value = self._source[name].data
            held = value.clone()
            value.copy_(self.state[name])
            self.state[name].copy_(held)
        self._moved()


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
