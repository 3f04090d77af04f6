"""Sends empty images through a network to see what it is made of: its output layers, its first layer, the sizes it takes."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass

import torch
from torch import nn
from torch.func import functional_call

from trainer.config import UserError, nearest
from trainer.models.base import first_few

# Left out of a pass for shapes alone: they change none, and take most of its time.
_SHAPELESS = (
    nn.BatchNorm2d, nn.SyncBatchNorm, nn.ReLU, nn.ReLU6, nn.SiLU, nn.GELU, nn.Hardswish, nn.Hardsigmoid, nn.Sigmoid, nn.Dropout,
)  # fmt: skip
Layer = nn.Linear | nn.Conv2d


@dataclass
class Call:
    """A linear or convolutional layer that a forward pass went through, and what it gave."""

    name: str
    layer: Layer
    output: torch.Tensor

    @property
    def width(self) -> int:
        return width(self.layer)


@dataclass
class Trace:
    """One forward pass: its layers in the order of the calls, and its outputs (main first)."""

    calls: list[Call]
    outputs: list[torch.Tensor]


@dataclass(frozen=True)
class Anatomy:
    """`head`: the output layers, main first; `first`: the layer that takes the image, if it is a convolution.

    `inputs`: every layer whose weights depend on the number of channels (the first alone, where nothing else is known).
    """

    head: tuple[str, ...]
    first: str | None
    classes: int
    channels: int
    inputs: tuple[str, ...] = ()


def width(layer: nn.Module) -> int:
    """The number of outputs of a linear or convolutional layer."""
    return layer.out_features if isinstance(layer, nn.Linear) else int(layer.out_channels)  # type: ignore[arg-type]


@contextmanager
def _mode(network: nn.Module, training: bool) -> Iterator[None]:
    before = {module: module.training for module in network.modules()}
    network.train(training)
    try:
        yield
    finally:
        for module, was in before.items():
            module.training = was


def trace(network: nn.Module, channels: int, size: int, *, training: bool, meta: bool) -> Trace:
    """Pass two images through the network without changing it: shapes only on the meta device, else zeros for real.

    Raises whatever the network raises.
    """
    calls: list[Call] = []

    def hook(name: str) -> Callable[[nn.Module, object, object], None]:
        def note(module: nn.Module, _given: object, output: object) -> None:
            if isinstance(output, torch.Tensor) and isinstance(module, nn.Linear | nn.Conv2d):
                calls.append(Call(name, module, output))

        return note

    values: dict[str, torch.Tensor] = {}
    if meta:
        for name, value in [*network.named_parameters(), *network.named_buffers()]:
            values[name] = torch.empty_like(value, device="meta")
    else:
        for name, value in network.named_buffers():  # running statistics must stay as they are
            values[name] = value.clone()
    images = torch.zeros(2, channels, size, size, device="meta" if meta else "cpu")
    with ExitStack() as stack:
        for name, module in network.named_modules():
            if isinstance(module, nn.Linear | nn.Conv2d):
                stack.callback(module.register_forward_hook(hook(name)).remove)
            if meta and type(module) in _SHAPELESS and "forward" not in vars(module):
                module.forward = nn.Identity().forward
                stack.callback(delattr, module, "forward")
        stack.enter_context(_mode(network, training))
        stack.enter_context(torch.no_grad())
        stack.enter_context(torch.random.fork_rng(devices=[]))
        output = functional_call(network, values, (images,))
    outputs = list(output) if isinstance(output, tuple | list) else [output]
    return Trace(calls, [o for o in outputs if o is not None])


def _pass(network: nn.Module, channels: int, size: int, *, training: bool) -> Trace:
    """A pass for shapes, or for real where the network cannot do without values."""
    try:
        return trace(network, channels, size, training=training, meta=True)
    except Exception:  # may be the meta device's fault (a tensor that is no buffer, a data-dependent branch)
        if any(p.is_meta for p in network.parameters()):
            raise
        return trace(network, channels, size, training=training, meta=False)


def examine(network: nn.Module, source: str, channels: int, size: int, head_module: str | None) -> Anatomy:
    """Find the output layers and the first layer of a network that takes `channels` or another number of them.

    The main head is the layer whose output is the network's, or the last one called that has as many outputs (a convolution
    before a pooling); an auxiliary head is the same for a further output in training. Raises UserError.
    """
    if any(isinstance(p, nn.parameter.UninitializedParameter) for p in network.parameters()):
        raise UserError(f"{source}: lazy layers have no weights before their first input; write their sizes out")
    conv = next((m for m in network.modules() if isinstance(m, nn.Conv2d)), None)
    candidates = list(dict.fromkeys([*([conv.in_channels] if conv else []), channels, 3]))
    failures: list[tuple[Exception, bool]] = []
    for candidate in candidates:
        training = False
        try:
            still = _pass(network, candidate, size, training=False)
            training = True
            moving = _pass(network, candidate, size, training=True)
        except Exception as error:  # the network is the user's: anything can come
            failures.append((error, training))
            continue
        return _anatomy(network, source, candidate, still, moving, head_module)
    reason, in_training = failures[0]
    told = f"{type(reason).__name__}: {reason}".strip().splitlines()[0][:200]
    when = " in training, though it does in evaluation (auxiliary heads can need larger ones)" if in_training else ""
    smallest = _smallest(network, candidates[0], size)
    hint = f"; the smallest that it takes is {smallest}: set model.adapt.image_size" if smallest else ""
    raise UserError(f"{source}: does not take images of {size} x {size} pixels{when} ({told}){hint}")


def _smallest(network: nn.Module, channels: int, size: int, limit: int = 512) -> int | None:
    """The smallest size above `size` that goes through, by bisection; None when not even `limit` does."""

    def works(side: int) -> bool:
        try:
            for training in (False, True):
                _pass(network, channels, side, training=training)
        except Exception:
            return False
        return True

    if size >= limit or not works(limit):
        return None
    low, high = size, limit
    while high - low > 1:
        middle = (low + high) // 2
        low, high = (low, middle) if works(middle) else (middle, high)
    return high


def _anatomy(network: nn.Module, source: str, channels: int, still: Trace, moving: Trace, head_module: str | None) -> Anatomy:
    shapes = [tuple(o.shape) if isinstance(o, torch.Tensor) else type(o).__name__ for o in still.outputs[:1] + moving.outputs]
    odd = [s for s in shapes if not (isinstance(s, tuple) and len(s) == 2 and s[0] == 2)]
    if odd or not shapes:
        raise UserError(
            f"{source}: gives {odd[0] if odd else 'nothing'} for two images; a classifier gives logits [images, classes], "
            "in training perhaps followed by the logits of auxiliary heads"
        )
    classes = still.outputs[0].shape[1]
    names = [_named(network, source, head_module) if head_module else _source_of(still.outputs[0], still.calls, source)]
    ran = {call.name for call in still.calls}
    for output in moving.outputs[1:]:
        name = _source_of(output, [c for c in moving.calls if c.name not in ran and c.name not in names], source)
        names.append(name)
    first = still.calls[0] if still.calls else None
    is_input = first is not None and isinstance(first.layer, nn.Conv2d) and first.layer.in_channels == channels
    found = first.name if first and is_input else None
    return Anatomy(tuple(names), found, classes, channels, (found,) if found else ())


def _source_of(output: torch.Tensor, calls: list[Call], source: str) -> str:
    itself = [call for call in calls if call.output is output]
    as_wide = [call for call in calls if call.width == output.shape[1]]
    if not itself and not as_wide:
        last = [f"{call.name} ({call.width})" for call in calls[::-1]]
        raise UserError(
            f"{source}: no linear or convolutional layer gives its {output.shape[1]} outputs; "
            f"name the output layer as model.adapt.head_module{'; the last layers are ' + first_few(last) if last else ''}"
        )
    return (itself or as_wide)[-1].name


def _named(network: nn.Module, source: str, name: str) -> str:
    layers = {n: m for n, m in network.named_modules() if n}
    if name not in layers:
        raise UserError(f"model.adapt.head_module: {source} has no module '{name}'{nearest(name, layers)}")
    if not isinstance(layers[name], nn.Linear | nn.Conv2d):
        inside = [n for n, m in layers.items() if n.startswith(name + ".") and isinstance(m, nn.Linear | nn.Conv2d)]
        hint = f"; it holds {first_few(inside)}" if inside else ""
        raise UserError(
            f"model.adapt.head_module: '{name}' is a {type(layers[name]).__name__}, not a linear layer or convolution{hint}"
        )
    return name
