"""What operations take within themselves on a CPU, from torch's allocator, and give back before they end."""

from __future__ import annotations

import contextlib
from typing import Any

import torch

_CONVOLUTION = torch.ops.aten.convolution.default
_LARGE, _COPIES = 5, 256  # from this kernel on a depthwise one of oneDNN adds up so many copies of its gradient
_FEW = 4  # channels
_BACKWARD = torch.ops.aten.convolution_backward.default


def within(func: Any, args: tuple[Any, ...]) -> int:
    """The most bytes at once beyond what was there before, with its results; 0 where nothing is known of it.

    Convolutions of oneDNN lay input, weight and output out anew in blocks, and convert the result back; with the channels last
    only the weight. Those of torch itself unfold the input. All this was seen in the records of torch's profiler, on x86.
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
    size = int(y.numel()) * x.element_size()
    if backend == "mkldnn":
        if _last(x, weight):
            return size + weight.nbytes
        out = _in_blocks(size, y[1])
        return max(_in_blocks(x.nbytes, x.shape[1]) + _weight(weight) + out, out + size)
    return size + _unfolded(x, weight, size) if backend == "slow2d" else 0


def _backward(dy: torch.Tensor, x: torch.Tensor, weight: torch.Tensor, backend: str, mask: list[bool]) -> int:
    dx = x.nbytes if mask[0] else 0
    if backend == "mkldnn" and _last(x, weight):
        deep = weight.shape[1] == 1 and max(weight.shape[2:]) >= _LARGE
        return dx + (_COPIES if deep and mask[1] else 1) * weight.nbytes
    if backend == "mkldnn":
        given, taken, own = _in_blocks(dy.nbytes, dy.shape[1]), _in_blocks(x.nbytes, x.shape[1]), _weight(weight)
        inputs = max(given + own + taken, taken + dx) if mask[0] else 0
        weights = dx + max(given + taken + own, own + weight.nbytes) if mask[1] else 0
        return max(inputs, weights)
    if backend == "slow2d":
        return dx + (weight.nbytes if mask[1] else 0) + _unfolded(x, weight, dy.nbytes)
    return 0


def _in_blocks(size: int, channels: int) -> int:
    """Bytes of maps whose channels are filled up to whole blocks; the few of an image are taken as they are."""
    block = 16 if torch.backends.cpu.get_cpu_capability().startswith("AVX512") else 8
    return size if channels <= _FEW else size // channels * (-(-channels // block) * block)


def _weight(weight: torch.Tensor) -> int:
    if weight.shape[1] == 1:  # each channel by itself
        return _in_blocks(weight.nbytes, weight.shape[0])
    return _in_blocks(_in_blocks(weight.nbytes, weight.shape[0]), weight.shape[1])


def _last(x: torch.Tensor, weight: torch.Tensor) -> bool:
    """Whether the channels come last in memory, which oneDNN takes as it is."""
    return any(t.dim() == 4 and t.is_contiguous(memory_format=torch.channels_last) and not t.is_contiguous() for t in (x, weight))


def _output(x: torch.Tensor, weight: torch.Tensor, how: list[Any]) -> torch.Size:
    """The shape of what a convolution gives."""
    stride, padding, dilation, transposed, more, groups = how
    sides = []
    for axis, size in enumerate(x.shape[2:]):
        kernel, s, p, d = weight.shape[2 + axis], *(value[axis % len(value)] for value in (stride, padding, dilation))
        reach = d * (kernel - 1)
        sides.append(
            (size - 1) * s - 2 * p + reach + more[axis % len(more)] + 1 if transposed else (size + 2 * p - reach - 1) // s + 1
        )
    channels = weight.shape[1] * groups if transposed else weight.shape[0]
    return torch.Size([x.shape[0], channels, *sides])


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
