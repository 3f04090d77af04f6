"""From `model` in the run file to a network that generates, adapted to the classes, channels and size of its task."""

from __future__ import annotations

import importlib
import pkgutil
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import nn

from trainer.config import UserError, nearest
from trainer.config.adapt import Adapt
from trainer.config.run import Model
from trainer.models.adapt import seeded
from trainer.models.autoencoder import Codec
from trainer.models.base import Built, Checkpoint, LoadReport, Need
from trainer.models.beside import refuse_latents, warn_of_latents, words_of
from trainer.models.class_tables import Table
from trainer.models.filling_generator import fill
from trainer.models.text import Shapes, Words
from trainer.models.trial import check_size, problem
from trainer.spec import Beside, Call, Flow, Generator, InputSpec

_HALF = 0.5


@dataclass(frozen=True)
class Shape:
    """What a generator is built for: channels that it takes and gives, their side, and rows of its class tables (0: none).

    `text`: shapes of what it is told of a text, 0 for any number of tokens. `source`: it also takes a picture beside, of as many
    channels.
    """

    channels: int
    size: int
    rows: int
    text: Shapes = field(default_factory=dict)
    source: bool = False

    @property
    def taken(self) -> int:
        """Channels that the network takes."""
        return self.channels * (1 + self.source)


@dataclass(frozen=True)
class Parts:
    """The layers of a generator that are adapted, by dotted name.

    `inputs`: those that take its channels; `outputs`: those that give them, as many numbers a pixel of a patch as there are
    channels, or twice as many; `tables`: those of its classes; `head`: what else belongs to the outputs. `packed`: side of the
    squares whose channels they take and give one after the other, pixel by pixel in each.
    """

    inputs: tuple[str, ...]
    outputs: tuple[str, ...]
    tables: tuple[str, ...]
    head: tuple[str, ...] = ()
    packed: int = 1


@dataclass(frozen=True)
class Denoiser:
    """What `model.source` and `model.weights` name, before anything is built or read.

    `make(shape)` builds the network, `parts(network, shape)` its layers, `call` sends a batch through it. `channels`, `size`
    and `table` are those of the weights, `schedule` the settings of the scheduler that was saved with them; none where that is
    not known, or there is none. `read`: the checkpoint, if there is one. `spare`: its tables always have a row for no class.
    `vae`: the autoencoder that stands beside it, as FOLDER#PART. `text`: the shapes of what it is told of a text, 0 for any
    number of tokens (nothing: it is told none); `words`: the pipeline whose text encoders stand beside it. `source`: its weights
    also take a picture beside, as many channels behind the first ones. `flow`: it learns flow alone, `betas`: anything but flow;
    `latents`: the kinds of autoencoders that it makes latents of (nothing: any, or pixels); `more(wanted, side,
    factor)`: what it is called with besides, for images of `side` pixels, `factor` to one of what it makes. `square`: it learnt
    places, and makes one size.
    """

    name: str
    make: Callable[[Shape], nn.Module]
    parts: Callable[[nn.Module, Shape], Parts]
    call: Call
    channels: int | None
    size: int | None
    read: Callable[[], Checkpoint] | None
    table: Table | None = None
    schedule: Mapping[str, Any] | None = None
    spare: bool = False
    vae: str | None = None
    text: Shapes = field(default_factory=dict)
    words: str | None = None
    source: bool = False
    flow: Flow | None = None
    betas: bool = False
    latents: tuple[str, ...] = ()
    more: Callable[[Generator, int, int], dict[str, Any]] = lambda wanted, side, factor: {}
    square: bool = False


def with_source(call: Call) -> Call:
    """The call of a network that takes a picture beside: what it is told as `source` goes behind the noised one's channels."""

    def called(network: nn.Module, images: torch.Tensor, times: torch.Tensor, told: Mapping[str, torch.Tensor]) -> torch.Tensor:
        known = {name: value for name, value in told.items() if name != "source"}
        return call(network, torch.cat([images, told["source"].to(images.dtype)], dim=1), times, known)

    return called


def build_generator(config: Model, wanted: Generator, seed: int, *, load_weights: bool = True) -> Built:
    """Build the network, fit it to what is wanted of it, and fill it from its checkpoint; see `build_model`. Raises UserError."""
    source = denoiser_of(config)
    adapt = config.adapt
    _refuse(config)
    codec = None if wanted.vae is None else Codec.of(wanted.vae, source.vae)
    words = words_of(source, wanted)
    warn_of_latents(source, codec)
    image_size = adapt.image_size or (source.size * (codec.factor if codec else 1) if source.size else None)
    if image_size is None:
        raise UserError(f"model.adapt.image_size is missing: {source.name} does not say what size it makes; write it in pixels")
    refuse_latents(source, codec, image_size)
    shape = _shape(source, wanted, adapt, image_size, codec)
    more = source.more(wanted, image_size, codec.factor if codec else 1)
    if wanted.distilled is not None and "guidance" not in more:
        raise UserError(
            f"task.distilled_guidance is {wanted.distilled:g}, and {source.name} is not told how strongly it is guided; leave it "
            "out"
        )
    source = replace(source, call=partial(source.call, **more))
    with seeded(seed):
        network = source.make(shape)
    parts = source.parts(network, shape)
    check_size(network, source, shape, codec.factor if codec else 1)
    adapt = adapt.model_copy(update={"in_channels": shape.channels})
    heads = [*parts.outputs, *parts.head, *parts.tables]
    if source.channels not in (None, shape.channels):
        heads += parts.inputs
    if source.read is not None and load_weights:
        report = fill(network, source, parts, shape, adapt, () if wanted.text else wanted.classes, seed)
        fresh = [name for name, _ in network.named_parameters() if name in report.fresh]
    else:
        report = LoadReport(f"{source.name}, no checkpoint read")
        fresh = []
    if source.read is not None and wanted.source and not source.source:  # zero for the source picture, and has to learn
        fresh += [f"{name}.weight" for name in parts.inputs]
    spec = InputSpec(
        config.adapt.in_channels, image_size, (_HALF,) * config.adapt.in_channels, (_HALF,) * config.adapt.in_channels
    )
    schedule = None if source.read is None else source.schedule
    call = with_source(source.call) if wanted.source else source.call
    image = (config.adapt.in_channels, image_size)
    beside = Beside(
        call,
        shape.channels,
        shape.size,
        image,
        schedule,
        codec,
        words,
        wanted.source,
        source.flow,
        source.betas,
        None if source.square else partial(problem, network, source.call, shape),
    )
    return Built(network, tuple(heads), tuple(fresh), spec, report, beside)


def generator_needs(config: Model, vae: str | None) -> list[Need]:
    """The files of a generator and of what stands beside it, but not of an autoencoder of another source. Raises UserError."""
    scheme, _, rest = config.source.partition(":")
    module: Any = importlib.import_module(f"trainer.models.{'denoisers' if scheme == 'diffusers' else scheme}")
    found: list[Need] = module.needs(rest, config)
    source = denoiser_of(config)
    found = [*found, *(Codec.of(vae, source.vae).needs() if vae == "pipeline" else [])]
    return [*found, *(Words(source.words).needs() if source.words is not None else [])]


def denoiser_of(config: Model) -> Denoiser:
    """What the source and the weights name. Raises UserError for a source that generates nothing."""
    scheme, _, rest = config.source.partition(":")
    names = sorted(module.name for module in pkgutil.iter_modules([str(Path(__file__).parent)]))
    module: Any = importlib.import_module(f"trainer.models.{scheme}") if scheme in names else None
    if hasattr(module, "denoiser"):
        found: Denoiser = module.denoiser(rest, config)
        return found
    schemes = [name for name in names if hasattr(importlib.import_module(f"trainer.models.{name}"), "denoiser")]
    sees = hasattr(module, "origin")
    said = f"{scheme}: has networks that see images, and none that makes them" if sees else f"unknown source '{scheme}'"
    raise UserError(
        f"model.source '{config.source}': {said}; write one of {', '.join(f'{name}:' for name in schemes)}, such as "
        f"diffusers:FOLDER or diffusers:UNet2DModel{'' if sees else nearest(scheme, schemes)}"
    )


def _refuse(config: Model) -> None:
    """Raises UserError for what means something for the head of a classifier alone."""
    if config.adapt.head_module is not None:
        raise UserError(
            "model.adapt.head_module names the output layer of a classifier; leave it out for a network that generates"
        )


def _shape(source: Denoiser, wanted: Generator, adapt: Adapt, image_size: int, codec: Codec | None) -> Shape:
    classes = 0 if wanted.text else len(wanted.classes)
    rows = classes + (wanted.dropped or source.spare) if classes else int(source.spare)
    if codec is None:
        return Shape(adapt.in_channels, image_size, rows, source.text, wanted.source)
    if adapt.in_channels != codec.in_channels:
        raise UserError(
            f"{codec.name} takes {codec.in_channels} channels and model.adapt.in_channels is {adapt.in_channels}; "
            f"write {codec.in_channels}"
        )
    if adapt.channels == "map":
        raise UserError("model.adapt.channels: map names the channels of pixels, and these are latents; write repeat or zero")
    if image_size % codec.factor:
        below = image_size // codec.factor * codec.factor
        near = [size for size in (below, below + codec.factor) if size]
        raise UserError(
            f"model.adapt.image_size is {image_size}, and {codec.name} takes multiples of {codec.factor}; write "
            f"{' or '.join(map(str, near))}"
        )
    return Shape(codec.channels, image_size // codec.factor, rows, source.text, wanted.source)
