"""What operations take within themselves on a CPU, from torch's allocator, and give back before they end."""

from __future__ import annotations

import contextlib
from typing import Any

import torch

_CONVOLUTION = torch.ops.aten.convolution.default
_BACKWARD = torch.ops.aten.convolution_backward.default


def within(func: Any, args: tuple[Any, ...]) -> int:
    """The most bytes at once beyond what was there before, with its results; 0 where nothing is known of it.

    Convolutions of oneDNN lay input, weight and output out anew in blocks, and convert the result back; those of torch itself
    unfold the input (seen in the records of torch's profiler).
    """
    if func is _CONVOLUTION:
        x, weight, bias, *how = args
        return _forward(x, weight, _backend(x, weight, bias, how), how)
    if func is _BACKWARD:
        dy, x, weight, _, *how, mask = args
        return _backward(dy, x, weight, _backend(x, weight, None, how), mask)
    return 0


def _forward(x: torch.Tensor, weight: torch.Tensor, backend: str, how: list[Any]) -> int:
    y = _output(x, weight, how)
    if backend == "mkldnn":
        return max(x.nbytes + weight.nbytes + y, 2 * y)
    return y + _unfolded(x, weight, y) if backend == "slow2d" else 0


def _backward(dy: torch.Tensor, x: torch.Tensor, weight: torch.Tensor, backend: str, mask: list[bool]) -> int:
    dx = x.nbytes if mask[0] else 0
    if backend == "mkldnn":
        inputs = max(dy.nbytes + weight.nbytes + x.nbytes, 2 * x.nbytes) if mask[0] else 0
        weights = dx + max(dy.nbytes + x.nbytes + weight.nbytes, 2 * weight.nbytes) if mask[1] else 0
        return max(inputs, weights)
    if backend == "slow2d":
        return dx + (weight.nbytes if mask[1] else 0) + _unfolded(x, weight, dy.nbytes)
    return 0


def _output(x: torch.Tensor, weight: torch.Tensor, how: list[Any]) -> int:
    """Bytes of what a convolution gives."""
    stride, padding, dilation, transposed, more, groups = how
    sides = []
    for axis, size in enumerate(x.shape[2:]):
        kernel, s, p, d = weight.shape[2 + axis], *(value[axis % len(value)] for value in (stride, padding, dilation))
        reach = d * (kernel - 1)
        sides.append(
            (size - 1) * s - 2 * p + reach + more[axis % len(more)] + 1 if transposed else (size + 2 * p - reach - 1) // s + 1
        )
    channels = weight.shape[1] * groups if transposed else weight.shape[0]
    return int(torch.Size([x.shape[0], channels, *sides]).numel()) * x.element_size()


def _unfolded(x: torch.Tensor, weight: torch.Tensor, y: int) -> int:
    """Bytes of the columns that a convolution is a matrix product of."""
    kernel = torch.Size(weight.shape[2:]).numel()
    return 0 if kernel == 1 else y // weight.shape[0] * x.shape[1] * kernel


def _backend(x: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor | None, how: list[Any]) -> str:
    """Which of torch's convolutions it will be, by torch's own choice."""
    stride, padding, dilation, transposed, more, groups = how
    with contextlib.suppress(RuntimeError, TypeError, AttributeError):
        chosen = torch._C._select_conv_backend(x, weight, bias, stride, padding, dilation, transposed, more, groups)
        return str(chosen).rpartition(".")[2].lower().replace("transpose", "")
    return ""
