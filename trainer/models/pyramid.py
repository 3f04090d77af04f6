"""The maps of a trunk from fine to coarse, which a decoder makes pictures of, and the trunk without what comes after them."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import dataclass, field

import torch
from torch import nn

from trainer.config import UserError
from trainer.spec import InputSpec

_LEAST = 2  # levels that a decoder needs


@dataclass(frozen=True)
class Level:
    """The last module that gives maps of a size: its name and its channels."""

    name: str
    channels: int


@dataclass
class _Trace:
    """What a pass showed: events in their order, the last of each size, where a convolution ran."""

    began: list[tuple[int, str]] = field(default_factory=list)
    ended: dict[int, tuple[int, str, int]] = field(default_factory=dict)  # by size: (when, module, channels)
    worked: set[int] = field(default_factory=set)
    clock: int = 0


def _follow(network: nn.Module, spec: InputSpec) -> _Trace:
    """Send a picture through; raises what the network raises."""
    found = _Trace()

    def start(name: str) -> Callable[[nn.Module, object], None]:
        def note(_module: nn.Module, _given: object) -> None:
            found.clock += 1
            found.began.append((found.clock, name))

        return note

    def end(name: str) -> Callable[[nn.Module, object, object], None]:
        def note(module: nn.Module, _given: object, output: object) -> None:
            found.clock += 1
            if (
                isinstance(module, nn.Identity)
                or not isinstance(output, torch.Tensor)
                or output.dim() != 4
                or output.shape[2] != output.shape[3]
            ):
                return
            size = output.shape[-1]
            if size < 2 or size > min(found.ended, default=size):
                return  # one number a channel, or wider again than what was: on the way to an answer
            found.ended[size] = (found.clock, name, output.shape[1])
            if isinstance(module, nn.Conv2d | nn.Linear):
                found.worked.add(size)

        return note

    training = network.training
    device = next(network.parameters()).device
    with ExitStack() as stack:
        for name, module in network.named_modules():
            if name:
                stack.callback(module.register_forward_pre_hook(start(name)).remove)
                stack.callback(module.register_forward_hook(end(name)).remove)
        stack.enter_context(torch.no_grad())
        stack.enter_context(torch.random.fork_rng(devices=[]))
        network.eval()
        try:
            network(torch.zeros(1, spec.in_channels, spec.image_size, spec.image_size, device=device))
        finally:
            network.train(training)
    return found


def pyramid(network: nn.Module, spec: InputSpec, name: str) -> list[Level]:
    """The maps of a trunk from fine to coarse, one of each size at which a convolution works. Raises UserError."""
    found = _follow(network, spec)
    sizes = sorted(found.ended.keys() & found.worked, reverse=True)
    levels = [Level(*found.ended[size][1:]) for size in sizes]
    if len(levels) < _LEAST:
        what = f"only maps of one size ('{levels[0].name}')" if levels else "no maps [n, channels, height, width]"
        raise UserError(
            f"{name}: gives {what} of images of {spec.image_size} pixels, and a decoder needs two sizes at least; take a "
            "convolutional trunk (ResNet, VGG, EfficientNet, ConvNeXt), larger images, or a network of your own that gives "
            "pictures (python:)"
        )
    return levels


def cut(network: nn.Module, levels: list[Level], spec: InputSpec, name: str) -> list[str]:
    """Take out what comes after the last maps; returns its parameters' names. Raises UserError where that breaks the rest."""
    found = _follow(network, spec)
    last = next(when for when, module, _ in found.ended.values() if module == levels[-1].name)
    first: dict[str, int] = {}
    for when, module in found.began:
        first.setdefault(module, when)
    late = [module for module, _ in network.named_modules() if module and first.get(module, last + 1) > last]
    # a module that was never called may still be a container whose children are called by themselves
    called = {module for module, when in first.items() if when <= last}
    late = [module for module in late if not any(other.startswith(f"{module}.") for other in called)]
    outer = [module for module in late if not any(module.startswith(f"{other}.") for other in late)]
    removed = [f"{module}.{inner}" for module in outer for inner, _ in network.get_submodule(module).named_parameters()]
    for module in outer:
        parent, _, child = module.rpartition(".")
        setattr(network.get_submodule(parent), child, nn.Identity())
    try:
        again = pyramid(network, spec, name)
    except UserError:
        raise
    except Exception as error:
        raise UserError(
            f"{name}: does not run without the layers after '{levels[-1].name}' ({type(error).__name__}: {error}); write its "
            "trunk as a network of your own (python:)"
        ) from error
    if [level.channels for level in again] != [level.channels for level in levels]:
        raise UserError(f"{name}: gives other maps without the layers after '{levels[-1].name}'; write its trunk as python:")
    return removed
