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
from trainer.models.adapt import new_input, seeded
from trainer.models.base import Built, LoadReport, Need, Origin, WrongSizeError
from trainer.models.both import build_both
from trainer.models.channels import normalisation
from trainer.models.compare import compared
from trainer.models.fit import fit
from trainer.models.gan import build_pair
from trainer.models.generator import build_generator
from trainer.models.heads import GRAFTED
from trainer.models.outputs import check, place
from trainer.models.probe import Anatomy, examine
from trainer.models.reconstructor import build_reconstructor
from trainer.models.sizes import nearest_size
from trainer.models.translator import build_translator
from trainer.spec import Cyclic, Generator, InputSpec, Output, Pair, Reconstructor, Translator, Wanted

Norm = Literal["auto", "imagenet", "half", "none"] | Normalize
_IMAGENET = ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225))


def build_model(config: Model, normalize: Norm, wanted: Wanted, seed: int, *, load_weights: bool = True) -> Built:
    """Build the network, fit it to the outputs, channels and size of the task, and fill it from its checkpoint.

    Several outputs are several heads on one trunk, side by side in one tensor [n, labels of all] (`trainer.models.heads.Heads`).
    What is new is drawn from `seed` alone. With `load_weights=False` nothing is read or downloaded: the same names, shapes and
    `spec`, for a state that is loaded over it; `fresh` then leaves out what the checkpoint turned out to lack.
    Raises UserError.
    """
    if isinstance(wanted, Pair):
        return build_pair(config, wanted, seed, load_weights=load_weights)
    if isinstance(wanted, Generator):
        return build_generator(config, wanted, seed, load_weights=load_weights)
    if isinstance(wanted, Reconstructor):
        return build_reconstructor(config, seed, load_weights=load_weights)
    if isinstance(wanted, Translator):

        def sees(model: Model) -> Built:
            head = model.adapt.model_copy(update={"head": "new"})
            model = model.model_copy(update={"adapt": head})
            return build_model(model, normalize, (Output("", ("0", "1")),), seed, load_weights=load_weights)

        return build_translator(config, wanted, seed, sees, load_weights=load_weights)
    if isinstance(wanted, Cyclic):

        def one(model: Model, way: Translator, drawn: int) -> Built:
            return build_model(model, normalize, way, drawn, load_weights=load_weights)

        return build_both(config, wanted, seed, one, load_weights=load_weights)
    outputs = wanted
    check(outputs, config.adapt)
    classes = sum(len(output.labels) for output in outputs)
    source = origin_of(config)
    adapt = config.adapt
    size = adapt.image_size or source.image_size
    if size is None:
        raise UserError(f"model.adapt.image_size is missing: {source.name} does not say what size it takes; write it in pixels")
    if source.sized and source.read is None and any(adapt.of(output.name).head == "keep" for output in outputs):
        raise UserError("model.adapt.head: keep, but with weights: none there is no trained head; write auto")
    with seeded(seed):
        network, anatomy = _examined(source, adapt, classes, size)
        if source.shaped is not None:
            if anatomy.channels != adapt.in_channels:
                raise UserError(
                    f"{source.name}: takes {anatomy.channels} channels, and its library does not build it for "
                    f"{adapt.in_channels}; set model.adapt.in_channels: {anatomy.channels}"
                )
            anatomy = compared(source.shaped, anatomy, classes, size)
        made = place(network, source.name, anatomy, outputs, adapt, size, sized=source.sized)
        made += _channels(network, source, config, anatomy)
    reshaped = bool(made) or anatomy.channels != adapt.in_channels
    # an author's own network may do more with its layers than call them, and a library's with what a head gives
    if reshaped and (not source.sized or any(isinstance(network.get_submodule(name), GRAFTED) for name in anatomy.head)):
        after = examine(network, source.name, adapt.in_channels, size, adapt.head_module)
        if after.classes != classes or after.channels != adapt.in_channels:
            raise UserError(
                f"{source.name}: with its layers adapted it gives {after.classes} outputs and takes {after.channels} channels, "
                f"not {classes} and {adapt.in_channels}; name its output layer as model.adapt.head_module"
            )
    if source.read is not None and load_weights:
        report = fit(network, source.read(), anatomy, adapt, outputs)
        made = [name for name, _ in network.named_parameters() if name in report.fresh]
    else:
        report = LoadReport(f"{source.name}, no checkpoint read", fresh=made)
    mean, std = _normalisation(normalize, source, adapt)
    spec = InputSpec(adapt.in_channels, size, mean, std, source.interpolation or "bilinear")
    return Built(network, anatomy.head, tuple(made), spec, report)


def _examined(source: Origin, adapt: Adapt, classes: int, size: int) -> tuple[nn.Module, Anatomy]:
    """The network as it comes, and what it is made of. A size that it does not take is refused with one that it does."""

    def make(side: int) -> nn.Module:
        return source.make(classes, side) if source.shaped is None else source.shaped(classes, side, adapt.in_channels)

    try:
        network = make(size)
        return network, examine(network, source.name, adapt.in_channels, size, adapt.head_module)
    except WrongSizeError as error:
        near = nearest_size(make, adapt.in_channels, size) if source.sized else None
        hint = f"; the nearest that was found to go through is {near}: set model.adapt.image_size" if near else ""
        raise UserError(f"{error}{hint}") from error


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


def _channels(network: nn.Module, source: Origin, config: Model, anatomy: Anatomy) -> list[str]:
    """Give the network the task's channels; returns the names of the parameters that are new by that."""
    made: list[str] = []
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
