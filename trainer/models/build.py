"""From `model` in the run file to an adapted network."""

from __future__ import annotations

import importlib
import pkgutil
from pathlib import Path
from types import ModuleType
from typing import Literal

from torch import nn

from trainer.config import UserError, nearest
from trainer.config.adapt import Adapt
from trainer.config.run import Model, Normalize
from trainer.models.adapt import new_head, new_input, seeded
from trainer.models.base import Built, LoadReport, Need, Origin
from trainer.models.channels import normalisation
from trainer.models.compare import compared
from trainer.models.fit import fit
from trainer.models.generator import build_generator
from trainer.models.probe import Anatomy, examine, width
from trainer.spec import Generator, InputSpec, Wanted, labels_of

Norm = Literal["auto", "imagenet", "half", "none"] | Normalize
_IMAGENET = ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225))


def build_model(config: Model, normalize: Norm, wanted: Wanted, seed: int, *, load_weights: bool = True) -> Built:
    """Build the network, fit it to the classes, channels and size of the task, and fill it from its checkpoint.

    What is new is drawn from `seed` alone. With `load_weights=False` nothing is read or downloaded: the same names, shapes and
    `spec`, for a state that is loaded over it; `fresh` then leaves out what the checkpoint turned out to lack.
    Raises UserError.
    """
    if isinstance(wanted, Generator):
        return build_generator(config, wanted, seed, load_weights=load_weights)
    classes = labels_of(wanted)
    source = origin_of(config)
    adapt = config.adapt
    size = adapt.image_size or source.image_size
    if size is None:
        raise UserError(f"model.adapt.image_size is missing: {source.name} does not say what size it takes; write it in pixels")
    if adapt.head == "keep" and source.sized and source.read is None:
        raise UserError("model.adapt.head: keep, but with weights: none there is no trained head; write auto")
    with seeded(seed):
        if source.shaped is not None:
            network = source.shaped(len(classes), size, adapt.in_channels)
        else:
            network = source.make(len(classes), size)
        anatomy = examine(network, source.name, adapt.in_channels, size, adapt.head_module)
        if source.shaped is not None:
            if anatomy.channels != adapt.in_channels:
                raise UserError(
                    f"{source.name}: takes {anatomy.channels} channels, and its library does not build it for "
                    f"{adapt.in_channels}; set model.adapt.in_channels: {anatomy.channels}"
                )
            anatomy = compared(source.shaped, anatomy, len(classes), size)
        made = _reshape(network, source, config, anatomy, len(classes))
    reshaped = bool(made) or anatomy.channels != adapt.in_channels
    if reshaped and not source.sized:  # an author's own network may do more with its layers than call them
        after = examine(network, source.name, adapt.in_channels, size, adapt.head_module)
        if after.classes != len(classes) or after.channels != adapt.in_channels:
            raise UserError(
                f"{source.name}: with its layers adapted it gives {after.classes} outputs and takes {after.channels} channels, "
                f"not {len(classes)} and {adapt.in_channels}; name its output layer as model.adapt.head_module"
            )
    if source.read is not None and load_weights:
        report = fit(network, source.read(), anatomy, adapt, classes)
        made = [name for name, _ in network.named_parameters() if name in report.fresh]
    else:
        report = LoadReport(f"{source.name}, no checkpoint read", fresh=made)
    mean, std = _normalisation(normalize, source, adapt)
    spec = InputSpec(adapt.in_channels, size, mean, std, source.interpolation or "bilinear")
    return Built(network, anatomy.head, tuple(made), spec, report)


def needs(config: Model) -> list[Need]:
    """The files that the weights of a model are read from, as its source says. Raises UserError."""
    module, rest = _source(config)
    return module.needs(rest, config)  # type: ignore[no-any-return]


def origin_of(config: Model) -> Origin:
    """What the source and the weights name, before anything is built or read. Raises UserError."""
    module, rest = _source(config)
    return module.origin(rest, config)  # type: ignore[no-any-return]


def _source(config: Model) -> tuple[ModuleType, str]:
    """The module of the source, and what it is to take from there."""
    scheme, colon, rest = config.source.partition(":")
    package = str(Path(__file__).parent)
    names = {module.name for module in pkgutil.iter_modules([package])}
    if colon and scheme in names:
        module = importlib.import_module(f"trainer.models.{scheme}")
        if hasattr(module, "origin"):
            return module, rest
    schemes = [n for n in sorted(names) if hasattr(importlib.import_module(f"trainer.models.{n}"), "origin")]
    near = nearest(scheme, schemes) or f"; known: {', '.join(schemes)}"
    raise UserError(f"model.source '{config.source}': write SCHEME:NAME, such as torchvision:resnet50{near}")


def _reshape(network: nn.Module, source: Origin, config: Model, anatomy: Anatomy, classes: int) -> list[str]:
    """Give the network the task's outputs and channels; returns the names of the parameters that are new by that."""
    made: list[str] = []
    for name in anatomy.head:
        if not source.sized and config.adapt.head != "new" and width(network.get_submodule(name)) == classes:
            continue
        if not source.sized:
            if config.adapt.head == "keep":
                raise UserError(
                    f"model.adapt.head: keep, but '{name}' of {source.name} has {width(network.get_submodule(name))} outputs "
                    f"and the task has {classes} classes; write auto or new"
                )
            new_head(network, name, classes)
        made += [f"{name}.{part}" for part, _ in network.get_submodule(name).named_parameters()]
    if source.shaped is not None:
        if source.read is None and config.adapt.in_channels != source.channels:
            made += [f"{name}.weight" for name in anatomy.inputs]
    elif anatomy.channels != config.adapt.in_channels or (config.adapt.channels == "map" and not source.sized):
        if anatomy.first is None:
            raise UserError(
                f"{source.name}: takes {anatomy.channels} channels and does not begin with a convolution that could be adapted "
                f"to {config.adapt.in_channels}; set model.adapt.in_channels: {anatomy.channels}"
            )
        random = source.sized and source.read is None
        new_input(network, anatomy.first, config.adapt, pretrained=not random)
        if random:
            made.append(f"{anatomy.first}.weight")
    return made


def _normalisation(normalize: Norm, source: Origin, adapt: Adapt) -> tuple[tuple[float, ...], tuple[float, ...]]:
    """Means and deviations a channel; those of known channels follow the filters, by the rule for other channels."""
    channels = adapt.in_channels
    if isinstance(normalize, Normalize):
        if not len(normalize.mean) == len(normalize.std) == channels:
            raise UserError(
                f"data.normalize: {len(normalize.mean)} means and {len(normalize.std)} deviations for {channels} channels"
            )
        return tuple(normalize.mean), tuple(normalize.std)
    if normalize == "none":
        return (0.0,) * channels, (1.0,) * channels
    if normalize == "auto" and source.mean is not None and source.std is not None:
        mean, std = source.mean, source.std
    elif normalize == "imagenet" or (normalize == "auto" and channels == 3):
        mean, std = _IMAGENET
    else:
        return (0.5,) * channels, (0.5,) * channels
    return normalisation(mean, adapt), normalisation(std, adapt)
