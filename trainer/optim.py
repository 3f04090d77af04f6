"""Optimizers, learning-rate schedules as functions of samples seen, and the moving average of the weights."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping
from typing import Any

import torch
from torch import nn

from trainer.config.optimizers import SGD, Adam, AdamW, Cosine, Linear, Optimizer, Schedule, Step
from trainer.spec import ParamGroup


def build_optimizer(config: Optimizer, learning: Iterable[ParamGroup]) -> torch.optim.Optimizer:
    """The optimizer over what learns, now or later; 1-d parameters in groups without decay when `decay_norms` is false."""
    groups: list[dict[str, Any]] = []
    for given in learning:
        parameters = [p for _, p in given.parameters]
        decayed = parameters if config.decay_norms else [p for p in parameters if p.ndim > 1]
        others = [] if config.decay_norms else [p for p in parameters if p.ndim <= 1]
        for params, decay in ((decayed, config.weight_decay), (others, 0.0)):
            if params:
                groups.append({"params": params, "lr": config.lr * given.rate, "weight_decay": decay})
    match config:
        case SGD():
            return torch.optim.SGD(groups, lr=config.lr, momentum=config.momentum, nesterov=config.nesterov)
        case Adam():
            return torch.optim.Adam(groups, lr=config.lr, betas=config.betas, eps=config.eps)
        case AdamW():
            return torch.optim.AdamW(groups, lr=config.lr, betas=config.betas, eps=config.eps)
    raise TypeError(f"no optimizer for {type(config).__name__}")


def build_schedule(config: Schedule, *, total: int, epoch_samples: int, step_samples: int) -> Callable[[int], float]:
    """The factor on the learning rate as a function of the samples seen before a step, in [0, total)."""
    warmup = config.warmup_samples(total=total, epoch_samples=epoch_samples, step_samples=step_samples)
    every = config.every.samples(epoch_samples=epoch_samples, step_samples=step_samples) if isinstance(config, Step) else 1

    def factor(samples: int) -> float:
        if samples < warmup:
            # The first step already learns: its end, not its start, stands on the ramp.
            return config.warmup_start + (1 - config.warmup_start) * min(1.0, (samples + step_samples) / warmup)
        done = min(1.0, (samples - warmup) / max(1, total - warmup))
        match config:
            case Cosine():
                return config.end + (1 - config.end) * (1 + math.cos(math.pi * done)) / 2
            case Linear():
                return 1 - (1 - config.end) * done
            case Step():
                return config.gamma ** (samples // every)
        return 1.0

    return factor


class Average:
    """An exponential moving average of the learning parameters, and a copy of the buffers (Polyak and Juditsky 1992).

    The decay rises as (1 + step) / (10 + step) up to its value, so that a short run does not keep its first weights.
    """

    def __init__(self, network: nn.Module, decay: float) -> None:
        self._decay = decay
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
            torch._foreach_copy_([self.state[n] for n in self._buffers], [self._source[n] for n in self._buffers])

    @torch.no_grad()
    def restore(self, tensors: Mapping[str, torch.Tensor]) -> None:
        """Take a saved average over; what it lacks begins with the weights as they are."""
        for name, value in self.state.items():
            value.copy_(tensors.get(name, self._source[name]))

    @torch.no_grad()
    def swap(self) -> None:
        """Exchange the averaged and the current weights; twice restores both."""
        for name in (*self._learning, *self._buffers):
            value = self._source[name]
            held = value.data.clone()
            value.data.copy_(self.state[name])
            self.state[name].copy_(held)
