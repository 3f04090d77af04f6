"""`gan:resnet` and `gan:FOLDER`: a generator of latents with its critic, new ones or those of an export of graft.

A pair may also come from `run:NAME` and from `python:path.py:factory`, whose factory gives the two networks: a generator, called
with latents [n, latent] and, where it is told of classes, their numbers [n], whose `latent` says how many numbers a latent has;
and a critic, called with images [n, c, h, w] and those numbers. Class tables are embeddings named `class_embedding`.
"""

from __future__ import annotations

import importlib
import inspect
import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import nn

from trainer.config import UserError
from trainer.config.run import Model
from trainer.models.adapt import seeded
from trainer.models.base import Built, Checkpoint, LoadReport, Need
from trainer.models.class_tables import Table, class_tables
from trainer.models.file import read_checkpoint
from trainer.models.filling_generator import fill
from trainer.models.generator import Parts, Shape
from trainer.models.resnet_gan import GROUPS, ResnetCritic, ResnetGenerator
from trainer.spec import InputSpec, Pair

HALF = 0.5
NAMES = ("generator", "critic")
FILES = ("generator.safetensors", "critic.safetensors")
NEW = "resnet"
Networks = tuple[nn.Module, nn.Module]


@dataclass(frozen=True)
class PairSource:
    """What `model.source` and `model.weights` name, before anything is built or read.

    `make(shape)` builds generator and critic, `source` and `args` are what both are made by, `parts` names the layers of each
    that are adapted. `channels`, `size` and `table` are those of the weights, where that is known. `read`: the checkpoints of
    both, if there are any.
    """

    name: str
    source: str
    args: dict[str, Any]
    make: Callable[[Shape], Networks]
    parts: Callable[[Networks], tuple[Parts, Parts]]
    channels: int | None = None
    size: int | None = None
    table: Table | None = None
    read: Callable[[], tuple[Checkpoint, Checkpoint]] | None = None


@dataclass(frozen=True)
class _One:
    """One of the two, as `generator.fill` looks at a network."""

    channels: int | None
    table: Table | None
    read: Callable[[], Checkpoint]
    spare: bool = False
    source: bool = False  # no picture beside what comes in


def build_pair(config: Model, wanted: Pair, seed: int, *, load_weights: bool) -> Built:
    """Build both networks, fit them to the classes, channels and size, and fill them; see `build_model`. Raises UserError."""
    source = pair_of(config)
    adapt = config.adapt
    if adapt.head_module is not None:
        raise UserError("model.adapt.head_module names the output layer of a classifier; leave it out for a generator")
    size = adapt.image_size or source.size
    if size is None:
        raise UserError(f"model.adapt.image_size is missing: {source.name} does not say what size it makes; write it in pixels")
    if source.size not in (None, size) and source.read is not None:
        raise UserError(
            f"{source.name}: makes images of {source.size} pixels, and model.adapt.image_size is {size}, which takes other "
            f"layers; write {source.size}"
        )
    shape = Shape(adapt.in_channels, size, len(wanted.classes))
    with seeded(seed):
        networks = source.make(shape)
    _tried(networks, shape, source.name)
    generator, critic = networks
    parts = source.parts(networks)
    heads = [*parts[0].outputs, *parts[0].head, *parts[0].tables]
    report = LoadReport(f"{source.name}, no checkpoint read")
    fresh: list[str] = []
    if source.read is not None and load_weights:
        found = source.read()
        report = LoadReport(found[0].source)
        for place, (name, network, layers, checkpoint) in enumerate(zip(NAMES, networks, parts, found, strict=True)):
            one = _One(source.channels, source.table, partial(_given, checkpoint))
            # not `seed` itself, by which a run of the same seed drew the old rows: new ones would be theirs
            filled = fill(network, one, layers, shape, adapt, wanted.classes, seed + 1 + place)
            for word in ("matched", "adapted", "fresh", "left_over"):
                getattr(report, word).extend(f"{name}.{entry}" for entry in getattr(filled, word))
        fresh = [name for name, _ in generator.named_parameters() if f"generator.{name}" in report.fresh]
    half = (HALF,) * shape.channels
    made_by = {"source": source.source, "args": source.args, "classes": list(wanted.classes)}
    return Built(
        generator, tuple(heads), tuple(fresh), InputSpec(shape.channels, size, half, half), report, critic=critic,
        critic_head=(*parts[1].head, *parts[1].tables), made_by=made_by,
    )  # fmt: skip


def pair_of(config: Model) -> PairSource:
    """What the source and the weights name. Raises UserError for a source that has no such pair."""
    scheme, _, rest = config.source.partition(":")
    if scheme not in ("gan", "run", "python"):
        raise UserError(
            f"model.source '{config.source}': task gan takes a generator with its critic; write gan:{NEW}, gan:FOLDER (an export "
            "of graft), run:NAME or python:path.py:factory"
        )
    found: PairSource = importlib.import_module(f"trainer.models.{scheme}").pair(rest, config)
    return found


def without_weights(config: Model, state: Mapping[str, Any]) -> Model:
    """What makes the two networks of a checkpoint as they are, of its state alone: neither an export nor a run that they began
    with has to be there still. A file with a network stays where the run file has it.
    """
    said = state["pair"]
    source = config.source if config.source.startswith("python:") else said["source"]
    adapt = config.adapt.model_copy(update={"image_size": state["spec"]["image_size"]})
    return config.model_copy(update={"source": source, "args": dict(said["args"]), "weights": "none", "adapt": adapt})


def pair_needs(config: Model) -> list[Need]:
    """The files that both are read from. Raises UserError."""
    scheme, _, rest = config.source.partition(":")
    pair_of(config)
    if scheme == "run":
        found: list[Need] = importlib.import_module("trainer.models.run").needs(rest, config)
        return found
    folder = Path(rest) if scheme == "gan" and rest != NEW else Path(config.weights)
    return [] if config.weights == "none" else [Need(f"the weights of {config.source}", folder / file) for file in FILES]


def pair(rest: str, config: Model) -> PairSource:
    """The built-in pair, new or with the weights of a folder."""
    if rest == NEW:
        args = dict(config.args)
        if config.weights == "none":
            return PairSource(f"gan:{NEW}", f"gan:{NEW}", args, partial(_make, args), of_resnet)
        folder, said = Path(config.weights), _settings(Path(config.weights), "model.weights")
    else:
        if config.args:
            raise UserError(f"model.args cannot be set for {config.source}: its config.json says what it is")
        folder, said = Path(rest), _settings(Path(rest), "model.source")
        if said["source"] != f"gan:{NEW}":
            raise UserError(
                f"{config.source} is of {said['source']}; write model.source: python:path.py:factory, with model.weights: {rest}"
            )
        args = said["args"]
    read = None if config.weights == "none" else partial(read_pair, folder)
    sizes = said["in_channels"], said["image_size"]
    return PairSource(str(folder), f"gan:{NEW}", args, partial(_make, args), of_resnet, *sizes, _table(said), read)


def own_pair(make: Callable[[], Any], name: str, config: Model) -> PairSource:
    """That of an own factory, `name`; its class tables get as many rows as there are classes."""

    def made(shape: Shape) -> Networks:
        found = make()
        if not (isinstance(found, tuple | list) and len(found) == 2 and all(isinstance(one, nn.Module) for one in found)):
            raise UserError(f"{name}: task gan takes a generator and a critic, two modules; it gave {type(found).__name__}")
        generator, critic = found
        if not isinstance(getattr(generator, "latent", None), int):
            raise UserError(f"{name}: its generator has no whole number `latent`, which says how many numbers a latent has")
        for network in found:
            tables = class_tables(network)
            if shape.rows and not tables:
                raise UserError(
                    f"{name}: {type(network).__name__} has no torch.nn.Embedding named class_embedding to look the class up in; "
                    "name it so, or write task.condition: none"
                )
            for table in tables if shape.rows else ():
                old: Any = network.get_submodule(table)
                parent, _, child = table.rpartition(".")
                setattr(network.get_submodule(parent), child, nn.Embedding(shape.rows, old.embedding_dim))
        return generator, critic

    def parts(networks: Networks) -> tuple[Parts, Parts]:
        one, other = (Parts((), (), class_tables(network)) for network in networks)
        return one, other

    if config.weights == "none":
        return PairSource(name, name, dict(config.args), made, parts)
    said = _settings(Path(config.weights), "model.weights")
    read, sizes = partial(read_pair, Path(config.weights)), (said["in_channels"], said["image_size"])
    return PairSource(name, name, dict(config.args), made, parts, *sizes, _table(said), read)


def read_pair(folder: Path) -> tuple[Checkpoint, Checkpoint]:
    """The tensors of an export. Raises UserError for a damaged file."""
    one, other = (read_checkpoint(folder / file) for file in FILES)
    return one, other


def of_resnet(networks: Networks) -> tuple[Parts, Parts]:
    """The layers of the built-in pair that are adapted."""
    generator, critic = networks
    return Parts((), ("to_image",), class_tables(generator)), Parts(("from_image",), (), class_tables(critic), ("judge",))


def _table(said: dict[str, Any]) -> Table | None:
    classes = tuple(said["classes"])
    return Table(len(classes), classes, False) if classes else None


def _given(checkpoint: Checkpoint) -> Checkpoint:
    return checkpoint


def _settings(folder: Path, key: str) -> dict[str, Any]:
    """What an export says of itself. Raises UserError for a folder that is none."""
    try:
        said = json.loads((folder / "config.json").read_text(encoding="utf-8"))
        fits = said["task"] == "gan" and {"source", "args", "classes", "in_channels", "image_size"} <= said.keys()
    except (OSError, ValueError, KeyError, TypeError):
        fits = False
    if not fits:
        raise UserError(
            f"{key}: {folder} is no export of a gan (config.json, {', '.join(FILES)}); write a folder that `graft export` wrote, "
            f"or gan:{NEW} for new networks"
        )
    return dict(said)


def _make(args: dict[str, Any], shape: Shape) -> Networks:
    """The built-in pair. Raises UserError for arguments and sizes that it does not take."""
    given = [inspect.signature(kind.__init__).parameters for kind in (ResnetGenerator, ResnetCritic)]
    known = sorted({name for one in given for name in one} - {"self", "channels", "size", "classes"})
    for key, value in args.items():
        if key not in known:
            raise UserError(f"model.args.{key} is no argument of gan:{NEW}; known: {', '.join(known)}")
        if not isinstance(value, int) or isinstance(value, bool) or value < 1 or (key == "width" and value % GROUPS):
            what = f"a multiple of {GROUPS}" if key == "width" else "a whole number from 1 on"
            raise UserError(f"model.args.{key} is {value!r}; write {what}")
    doublings = max(0, (shape.size // 4).bit_length() - 1)
    step = 2**doublings
    if shape.size % step:
        below = shape.size // step * step
        raise UserError(
            f"model.adapt.image_size is {shape.size}, and gan:{NEW} makes 4 to 7 pixels that are doubled again and again; write "
            f"{below} or {below + step}"
        )
    size = (shape.channels, shape.size, shape.rows)
    one, other = ({key: value for key, value in args.items() if key in known} for known in given)
    return ResnetGenerator(*size, **one), ResnetCritic(*size, **other)


def _tried(networks: Networks, shape: Shape, name: str) -> None:
    """Two latents sent through both. Raises UserError where that fails, or images or numbers are of another shape."""
    generator: Any = networks[0]
    classes = (torch.zeros(2, dtype=torch.int64),) if shape.rows else ()
    wanted = [2, shape.channels, shape.size, shape.size]
    made = _called(
        generator, torch.zeros(2, generator.latent), classes, f"{name}: a generator", f"latents [n, {generator.latent}]"
    )
    if list(made.shape) != wanted:
        raise UserError(
            f"{name}: makes images of shape {list(made.shape[1:])}, and the task is about {wanted[1:]}; set "
            "model.adapt.in_channels and image_size to what it makes"
        )
    said = _called(networks[1], made, classes, f"{name}: a critic", f"images [n, {', '.join(map(str, wanted[1:]))}]")
    if said.dim() < 1 or len(said) != 2:
        raise UserError(f"{name}: its critic gives a tensor of shape {list(said.shape)} of 2 images; give numbers [n, …]")


def _called(network: nn.Module, given: torch.Tensor, classes: tuple[torch.Tensor, ...], what: str, takes: str) -> torch.Tensor:
    """What it gives in eval mode."""
    mode = network.training
    try:
        with torch.no_grad(), torch.random.fork_rng(devices=[]):
            found: torch.Tensor = network.eval()(given, *classes)
    except Exception as error:  # the network may be the user's: anything can come
        text = f"{type(error).__name__}: {error}".strip().splitlines()[0][:200]
        raise UserError(
            f"{what} is called with {takes}{' and classes [n]' if classes else ''}, and that fails: {text}"
        ) from error
    finally:
        network.train(mode)
    return found
