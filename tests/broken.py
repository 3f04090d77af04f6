"""Networks with a fault of the kind that a user's own network has."""

from __future__ import annotations

import ctypes
import os
import resource
import time
from pathlib import Path
from typing import Any

import torch
from torch import nn

from tests.network import Small


class Failing(nn.Module):
    """Fails in training at the fifth call on one rank."""

    def __init__(self, rank: int, kind: str) -> None:
        super().__init__()
        self.head = nn.Linear(64, 5)
        self._rank, self._kind = rank, kind
        self._calls = 0

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        if self.training:
            self._calls += 1
            if int(os.environ.get("RANK", "0")) == self._rank and self._calls == 5:
                raise {"value": ValueError("bad things"), "memory": MemoryError(), "exit": SystemExit(4),
                       "ecc": RuntimeError("CUDA error: uncorrectable ECC error encountered"),
                       "access": RuntimeError("CUDA error: an illegal memory access was encountered")}[self._kind]  # fmt: skip
        y: torch.Tensor = self.head(x.flatten(1))
        return y


class Sleeping(torch.autograd.Function):
    """The identity, whose backward pass takes a while."""

    @staticmethod
    def forward(ctx: Any, x: torch.Tensor, seconds: float) -> torch.Tensor:
        ctx.seconds = seconds
        return x.clone()

    @staticmethod
    def backward(ctx: Any, *gradients: torch.Tensor) -> tuple[torch.Tensor, None]:
        time.sleep(ctx.seconds)
        return gradients[0], None


class Hanging(nn.Module):
    """Hangs at the fifth call on one rank: in its forward or backward pass, or in C code that holds the interpreter's lock.

    `evaluation`: seconds that every call in an evaluation takes on that rank.
    """

    def __init__(self, rank: int, where: str, evaluation: float) -> None:
        super().__init__()
        self.head = nn.Linear(64, 5)
        self.norm = nn.BatchNorm1d(5)  # its buffers are sent around before each forward pass
        self._rank, self._where, self._evaluation = rank, where, evaluation
        self._calls = 0

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        chosen = int(os.environ.get("RANK", "0")) == self._rank
        self._calls += self.training
        hangs = chosen and self.training and self._calls == 5
        if chosen and not self.training:
            time.sleep(self._evaluation)
        y: torch.Tensor = self.norm(self.head(x.flatten(1)))
        if hangs and self._where == "forward":
            time.sleep(600)
        if hangs and self._where == "lock":
            ctypes.PyDLL(None).sleep(600)
        sleeping: torch.Tensor = Sleeping.apply(y, 600.0 if hangs and self._where == "backward" else 0.0)
        return sleeping


class Unused(nn.Module):
    """Holds a layer that nothing calls."""

    def __init__(self) -> None:
        super().__init__()
        self.head = nn.Linear(64, 5)
        self.spare = nn.Linear(3, 3)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        y: torch.Tensor = self.head(x.flatten(1))
        return y


class Lacking(torch.autograd.Function):
    """The identity; its backward pass runs out of memory."""

    @staticmethod
    def forward(ctx: Any, x: torch.Tensor) -> torch.Tensor:
        return x.clone()

    @staticmethod
    def backward(ctx: Any, *gradients: torch.Tensor) -> torch.Tensor:
        raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB.")


class Hungry(Small):
    """The small network, for which one rank has too little memory with more samples at a time than so many: in a forward pass of
    the training from the fifth on, in a backward pass, in an evaluation (0: any number fits). `each`: bytes that a sample of a
    training takes in truth."""

    def __init__(self, forward: int, backward: int, evaluation: int, each: int, norm: bool, dropout: float) -> None:
        super().__init__(5, norm, dropout, -1, 0, 1, False, 0.0, None)
        chosen = os.environ.get("RANK", "0") == "1"
        self._most = (forward, backward, evaluation) if chosen else (0, 0, 0)
        self._each = each if chosen else 0

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        y = super().forward(x)
        forward, backward, evaluation = (most or len(x) for most in self._most)
        if len(x) > (forward if self.training else evaluation) and (self._calls > 4 or not self.training):
            raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 1.00 GiB.")
        if self.training:
            torch.empty(len(x) * self._each, dtype=torch.uint8)
        lacking: torch.Tensor = Lacking.apply(y) if self.training and backward < len(x) <= forward else y
        return lacking


def failing(rank: int, kind: str) -> nn.Module:
    """The factory of a run file."""
    return Failing(rank, kind)


def hanging(rank: int, where: str = "", evaluation: float = 0.0) -> nn.Module:
    """The factory of a run file."""
    return Hanging(rank, where, evaluation)


def unused() -> nn.Module:
    """The factory of a run file."""
    return Unused()


def hungry(
    forward: int = 0, backward: int = 0, evaluation: int = 0, each: int = 0, address_space: int = 0, norm: bool = False,
    dropout: float = 0.0,
) -> nn.Module:  # fmt: skip
    """The factory of a run file. `address_space`: bytes that the process may still take from here on."""
    if address_space:
        now = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
        resource.setrlimit(resource.RLIMIT_AS, (now + address_space, resource.RLIM_INFINITY))
    return Hungry(forward, backward, evaluation, each, norm, dropout)
