"""The layers of a generator that nobody describes, found by sending noise through it."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import nn

from trainer.config import UserError
from trainer.config.adapt import Adapt
from trainer.models.adapt import inputs_beside, inputs_of
from trainer.models.channels import outputs_of
from trainer.models.generator import Parts, Shape
from trainer.models.trial import told
from trainer.spec import Call


def call(network: nn.Module, images: torch.Tensor, times: torch.Tensor, known: Mapping[str, torch.Tensor]) -> torch.Tensor:
    """Images, times and what is known of them, in this order, into a network of anybody's."""
    given: Any = network(images, times, *known.values())
    if isinstance(given, tuple | list):
        given = given[0]
    found: torch.Tensor = given if isinstance(given, torch.Tensor) else getattr(given, "sample", given)
    return found


def _traced(network: nn.Module, call: Call, shape: Shape) -> tuple[list[tuple[str, nn.Module]], str | None, dict[str, nn.Module]]:
    """Linear layers and convolutions in the order of their calls, the one whose output is the network's, and class tables."""
    layers: list[tuple[str, nn.Module]] = []
    outputs: dict[str, torch.Tensor] = {}
    tables: dict[str, nn.Module] = {}
    known = told(shape, 2)

    def hook(name: str) -> Any:
        def note(module: nn.Module, given: tuple[Any, ...], output: Any) -> None:
            if isinstance(module, nn.Embedding) and any(given and given[0] is value for value in known.values()):
                tables[name] = module
            elif isinstance(module, nn.Linear | nn.Conv2d):
                layers.append((name, module))
                outputs[name] = output

        return note

    handles = [module.register_forward_hook(hook(name)) for name, module in network.named_modules() if name]
    training = network.training
    try:
        with torch.no_grad(), torch.random.fork_rng(devices=[]):
            network.eval()
            found = call(network, torch.zeros(2, shape.taken, shape.size, shape.size), torch.zeros(2), known)
    finally:
        network.train(training)
        for handle in handles:
            handle.remove()
    last = next((name for name, output in reversed(outputs.items()) if output is found), None)
    return layers, last, tables


def _old(network: nn.Module, shape: Shape) -> Shape:
    """The shape that the network has by itself: channels by its first convolution; any table has a row 0."""
    first = next((module for module in network.modules() if isinstance(module, nn.Conv2d)), None)
    return Shape(first.in_channels if first is not None else shape.channels, shape.size, min(shape.rows, 1))


def fitted(network: nn.Module, call: Call, shape: Shape, adapt: Adapt, source: str) -> nn.Module:
    """The network with its input, its output and its class tables made for a shape; what it had is kept by the rules.

    Raises UserError where it cannot be called, or a layer that would have to change cannot be found.
    """
    old = _old(network, shape)
    try:
        layers, last, tables = _traced(network, call, old)
    except Exception as error:  # the network is the user's: anything can come
        text = f"{type(error).__name__}: {error}".strip().splitlines()[0][:200]
        given = "images, times, classes" if shape.rows else "images, times"
        raise UserError(f"{source}: a network that generates is called with ({given}), and this one fails: {text}") from error
    if shape.rows and not tables:
        raise UserError(
            f"{source}: the classes go through no torch.nn.Embedding of it; look them up in one, or write task.condition: none"
        )
    for name, table in tables.items():
        assert isinstance(table, nn.Embedding)
        if table.num_embeddings != shape.rows:
            new = nn.Embedding(shape.rows, table.embedding_dim)
            both = min(shape.rows, table.num_embeddings)
            with torch.no_grad():
                new.weight[:both] = table.weight[:both]
            _put(network, name, new)
    if shape.source and old.channels in (shape.channels, shape.taken):
        if old.channels != shape.taken:
            _beside(network, layers, old.channels, shape, adapt, source)
    elif shape.source:
        raise UserError(
            f"{source}: takes {old.channels} channels, and with the source picture beside the noised one it has to take "
            f"{shape.channels}, to which as many are added, or {shape.taken}; set model.adapt.in_channels accordingly"
        )
    elif old.channels != shape.channels:
        if last is None or not layers or getattr(layers[0][1], "in_channels", None) != old.channels:
            raise UserError(
                f"{source}: takes {old.channels} channels, and does not begin and end with a layer that could be adapted to "
                f"{shape.channels}; set model.adapt.in_channels: {old.channels}"
            )
        rule = adapt.model_copy(update={"in_channels": shape.channels})
        _channels(network, layers[0][0], last, old.channels, rule)
    return network


def _beside(
    network: nn.Module, layers: list[tuple[str, nn.Module]], old: int, shape: Shape, adapt: Adapt, source: str
) -> None:  # fmt: skip
    """A first layer that also takes the source picture, whose weights are zero. Raises UserError where there is none."""
    if not layers or getattr(layers[0][1], "in_channels", None) != old:
        raise UserError(
            f"{source}: takes {old} channels, and does not begin with a layer that could also take a source picture; let it "
            f"take {shape.taken}: the noised picture's, then the source's"
        )
    begin: Any = layers[0][1]
    layer: Any = _like(begin, shape.taken, None)
    rule = adapt.model_copy(update={"in_channels": shape.channels})
    values = inputs_beside(begin.weight, layer.weight.shape, rule, old, had=False, wanted=True)
    assert values is not None
    with torch.no_grad():
        layer.weight.copy_(values[0])
        if begin.bias is not None:
            layer.bias.copy_(begin.bias)
    _put(network, layers[0][0], layer)


def _channels(network: nn.Module, first: str, last: str, old: int, adapt: Adapt) -> None:
    """New layers for other channels, with the values of the old ones by the rules."""
    new = adapt.in_channels
    begin: Any = network.get_submodule(first)
    end: Any = network.get_submodule(last)
    before: Any = _like(begin, new, None)
    after: Any = _like(end, None, (end.weight.shape[0] // old) * new)
    with torch.no_grad():
        values = inputs_of(begin.weight, before.weight.shape, adapt)
        assert values is not None
        before.weight.copy_(values[0])
        if begin.bias is not None:
            before.bias.copy_(begin.bias)
        for part in ("weight", "bias"):
            value = getattr(end, part)
            if value is not None:
                given = outputs_of(value, getattr(after, part).shape, old, adapt)
                assert given is not None
                getattr(after, part).copy_(given[0])
    _put(network, first, before)
    _put(network, last, after)


def _like(layer: Any, inputs: int | None, outputs: int | None) -> nn.Module:
    """A layer of the same kind with other channels in or out."""
    bias = layer.bias is not None
    if isinstance(layer, nn.Linear):
        return nn.Linear(inputs or layer.in_features, outputs or layer.out_features, bias)
    if layer.groups != 1:
        raise UserError("a grouped convolution at the input or the output of a generator cannot be given other channels")
    return nn.Conv2d(
        inputs or layer.in_channels, outputs or layer.out_channels, layer.kernel_size, layer.stride, layer.padding,
        layer.dilation, 1, bias, layer.padding_mode,
    )  # fmt: skip


def _put(network: nn.Module, name: str, layer: nn.Module) -> None:
    parent, _, child = name.rpartition(".")
    setattr(network.get_submodule(parent), child, layer)


def found_parts(call: Call, network: nn.Module, shape: Shape) -> Parts:
    """The first and the last layer of a network, and its class tables."""
    layers, last, tables = _traced(network, call, shape)
    first = layers[0][0] if layers and getattr(layers[0][1], "in_channels", None) == shape.taken else None
    return Parts((first,) if first else (), (last,) if last else (), tuple(tables))
