"""Sends empty images through a network to see what it is made of: its output layers, its first layer, the sizes it takes."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import nn

from trainer.config import UserError, nearest
from trainer.models.base import WrongSizeError, first_few
from trainer.models.heads import GRAFTED, Attention, Heads, Mlp

# Left out of a pass for shapes alone: they change none, and take most of its time.
_SHAPELESS = (
    nn.BatchNorm2d, nn.SyncBatchNorm, nn.ReLU, nn.ReLU6, nn.SiLU, nn.GELU, nn.Hardswish, nn.Hardsigmoid, nn.Sigmoid, nn.Dropout,
)  # fmt: skip
Layer = nn.Linear | nn.Conv2d | Heads | Mlp | Attention
_LAYERS = (nn.Linear, nn.Conv2d, *GRAFTED)


@dataclass
class Call:
    """A layer that a forward pass went through (a head of graft's is one), and what it took and gave."""

    name: str
    layer: Layer
    given: torch.Size
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
    `auxiliary`: those of `head` that run in training alone. `given`: the shapes that layers are given. `grids`: the sizes of the
    maps that convolutions make, in the order of the pass.
    """

    head: tuple[str, ...]
    first: str | None
    classes: int
    channels: int
    inputs: tuple[str, ...] = ()
    auxiliary: tuple[str, ...] = ()
    given: Mapping[str, torch.Size] = field(default_factory=dict)
    grids: tuple[tuple[int, int], ...] = ()


def width(layer: nn.Module) -> int:
    """The number of outputs of a layer or a head."""
    if isinstance(layer, Heads):
        return sum(width(head) for head in layer.children())
    if isinstance(layer, Mlp | Attention):
        return width(layer.out)
    return layer.out_features if isinstance(layer, nn.Linear) else int(layer.out_channels)  # type: ignore[arg-type]


def layers_of(network: nn.Module) -> dict[str, nn.Module]:
    """The layers by dotted name; a head of graft's is one, whatever it is made of."""
    found: dict[str, nn.Module] = {}
    inside = "\0"
    for name, module in network.named_modules():
        if name.startswith(inside):
            continue
        if isinstance(module, GRAFTED):
            inside = f"{name}."
        if isinstance(module, _LAYERS):
            found[name] = module
    return found


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

    def hook(name: str) -> Callable[[nn.Module, tuple[Any, ...], object], None]:
        def note(module: nn.Module, given: tuple[Any, ...], output: object) -> None:
            if isinstance(output, torch.Tensor) and isinstance(module, Layer):
                shape = given[0].shape if given and isinstance(given[0], torch.Tensor) else torch.Size()
                calls.append(Call(name, module, shape, output))

        return note

    with ExitStack() as stack:
        for name, module in layers_of(network).items():
            stack.callback(module.register_forward_hook(hook(name)).remove)
        if meta:
            stack.enter_context(_shapes_alone(network))
        stack.enter_context(torch.no_grad())
        outputs, _ = send(network, channels, size, training=training, meta=meta)
    return Trace(calls, outputs)


@contextmanager
def _shapes_alone(network: nn.Module) -> Iterator[None]:
    """Leave out what changes no shapes."""
    with ExitStack() as stack:
        for module in network.modules():
            if type(module) in _SHAPELESS and "forward" not in vars(module):
                module.forward = nn.Identity().forward
                stack.callback(delattr, module, "forward")
        yield


def send(
    network: nn.Module, channels: int, size: int, *, training: bool, meta: bool
) -> tuple[list[torch.Tensor], dict[str, torch.Tensor]]:
    """What the network gives for two images (main output first), and the tensors that stood for its own, by name.

    Nothing in the network is changed: on the meta device all its tensors are stood in for, else its buffers are.
    Raises whatever the network raises.
    """
    with _stand_ins(network, meta) as values, _mode(network, training), torch.random.fork_rng(devices=[]):
        output = network(torch.zeros(2, channels, size, size, device="meta" if meta else "cpu"))
    outputs = list(output) if isinstance(output, tuple | list) else [output]
    return [o for o in outputs if o is not None], values


@contextmanager
def _stand_ins(network: nn.Module, meta: bool) -> Iterator[dict[str, torch.Tensor]]:
    """Other tensors for a while: all on the meta device, or copies of the buffers (running statistics must stay as they are).

    By hand, since torch's `functional_call` leaves its tensors in a module that has two names (CoaT).
    """
    other: dict[int, torch.Tensor] = {}
    held: list[tuple[dict[str, Any], dict[str, Any]]] = []
    names = {id(value): name for name, value in (*network.named_buffers(), *network.named_parameters())}
    for module in network.modules():
        both: tuple[dict[str, Any], dict[str, Any]] = (module._parameters, module._buffers)
        for own in both:
            held.append((own, dict(own)))
            for name, value in own.items():
                if value is None:
                    continue
                if id(value) not in other:
                    learns = isinstance(value, nn.Parameter)
                    needs = learns and value.is_floating_point()
                    if meta:
                        other[id(value)] = torch.empty_like(value, device="meta", requires_grad=needs)
                    else:
                        other[id(value)] = value if learns else value.clone()
                own[name] = other[id(value)]
    try:
        yield {names[key]: value for key, value in other.items()}
    finally:
        for own, before in held:
            own.clear()
            own.update(before)


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
    refused = f"{source}: does not take images of {size} x {size} pixels{when} ({told})"
    if smallest:
        raise UserError(f"{refused}; the smallest that it takes is {smallest}: set model.adapt.image_size")
    raise WrongSizeError(refused)


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
    auxiliary = tuple(names[1:])
    given = {call.name: call.given for call in (*moving.calls, *still.calls)}
    maps = [call.output.shape for call in still.calls if isinstance(call.layer, nn.Conv2d) and call.output.dim() == 4]
    grids = tuple(dict.fromkeys((shape[2], shape[3]) for shape in maps))
    first = still.calls[0] if still.calls else None
    is_input = first is not None and isinstance(first.layer, nn.Conv2d) and first.layer.in_channels == channels
    found = first.name if first and is_input else None
    return Anatomy(tuple(names), found, classes, channels, (found,) if found else (), auxiliary, given, grids)


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
    modules = {n: m for n, m in network.named_modules() if n}
    layers = layers_of(network)
    if name not in modules:
        raise UserError(f"model.adapt.head_module: {source} has no module '{name}'{nearest(name, modules)}")
    if name not in layers:
        inside = [n for n in layers if n.startswith(name + ".")]
        hint = f"; it holds {first_few(inside)}" if inside else ""
        raise UserError(
            f"model.adapt.head_module: '{name}' is a {type(modules[name]).__name__}, not a linear layer or convolution{hint}"
        )
    return name
