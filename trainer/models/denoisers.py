"""A saved network of diffusers that generates, or a class of theirs, as what is adapted to a task."""

from __future__ import annotations

import importlib
import inspect
from collections.abc import Callable, Mapping
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from torch import nn

from trainer.config import UserError, nearest
from trainer.config.run import Model
from trainer.models.autoencoder import beside
from trainer.models.base import Checkpoint, Need
from trainer.models.class_tables import Table, class_names, class_tables
from trainer.models.file import read_checkpoint
from trainer.models.generator import Denoiser, Parts, Shape
from trainer.models.kinds import KINDS, Kind, kind_of
from trainer.models.place import Place
from trainer.models.text import Words
from trainer.models.torchvision import is_path

if TYPE_CHECKING:
    from trainer.models.diffusers import Source

ROLES = ("unet", "transformer")  # what pipelines call the part that generates


def of(rest: str, config: Model) -> Denoiser:
    """A saved generator, a pipeline's, or a class of diffusers to be trained from scratch. Raises UserError."""
    if rest in KINDS and not Path(rest).is_dir():
        return _from_scratch(rest, config)
    from trainer.models.diffusers import Source

    source = Source(located(rest), config)
    settings, name = dict(source.settings), str(source.settings["_class_name"])
    if name not in KINDS:
        raise UserError(
            f"{source.name}: a {name} is no generator that is known here; those that are: {', '.join(KINDS)}"
            + (f"; name another part: {', '.join(source.parts)}" if source.parts else "")
        )
    for key in config.args:
        raise UserError(f"model.args.{key} cannot be set for diffusers:{rest}: its config.json says what it is")
    kind = kind_of(settings)
    sourced = kind.sourced and source.beside
    if sourced:  # what it gives is counted by the channels of one picture
        settings["in_channels"] = source.channels
    size = settings.get("sample_size")
    rows = kind.rows(settings)
    graft = source.place.json("graft.json") or {}
    dropped = True if kind.spare else graft.get("dropped")
    names = _names(source, graft)
    if names is not None and graft.get("rows") == rows:  # an export with rows that nobody needs, but a pipeline counts on
        names += tuple(f"(unused {row})" for row in range(len(names), rows - 1))
    table = Table(rows, names, dropped) if rows else None
    return Denoiser(
        f"diffusers:{rest}", partial(_make, source.model, settings), partial(_parts, kind), kind.call,
        channels=kind.channels(settings), source=sourced,
        size=max(size) if isinstance(size, list | tuple) else size,
        read=None if config.weights == "none" else partial(_read, source), table=table,
        schedule=source.place.json("scheduler/scheduler_config.json") if source.part else None, spare=kind.spare,
        vae=beside(rest.partition("#")[0]) if source.part else None, text=kind.text(settings),
        words=Words.beside(rest.partition("#")[0]) if source.part else None, flow=kind.flow,
        betas=kind.betas, latents=kind.vae, more=partial(kind.more, settings), square=kind.square,
    )  # fmt: skip


def located(rest: str) -> str:
    """FOLDER or FOLDER#PART: the part of a pipeline that generates, where none is named."""
    place, _, part = rest.partition("#")
    if part or (index := Place.of(place).json("model_index.json")) is None:
        return rest
    part = next((role for role in ROLES if isinstance(index.get(role), list)), "")
    return f"{place}#{part}" if part else rest


def needs(rest: str, config: Model) -> list[Need]:
    """The files of a generator, and of the scheduler that stands beside it. Raises UserError."""
    if rest in KINDS and not Path(rest).is_dir():
        return [Need(f"the weights of diffusers:{rest}", Path(config.weights))] if is_path(config.weights) else []
    from trainer.models.diffusers import needs as of_part

    return of_part(located(rest), config)


def _names(source: Source, graft: Mapping[str, Any]) -> tuple[str, ...] | None:
    """The names of the classes, where an export of graft's or the pipeline says them."""
    said = graft.get("classes")
    if isinstance(said, list) and all(isinstance(name, str) for name in said):
        return tuple(said)
    return class_names(source.rest) if source.part else None


def _read(source: Source) -> Checkpoint:
    return Checkpoint(f"{source.name} ({source.config.weights})", source.tensors())


def _from_scratch(name: str, config: Model) -> Denoiser:
    """An architecture with the arguments that the run file gives; its weights are a file, or none."""
    kind, made = KINDS[name], getattr(importlib.import_module("diffusers"), name)
    known = inspect.signature(made.__init__).parameters.keys() - {"self"}
    own = {"in_channels", "out_channels", "sample_size", "num_class_embeds", "num_embeds_ada_norm", "class_embed_type"}
    for key in config.args:
        if key in own:
            raise UserError(f"model.args.{key} follows from the task, the data and model.adapt; leave it out")
        if key not in known:
            raise UserError(f"model.args.{key}: diffusers' {name} has no such argument{nearest(key, known)}")
    if config.weights != "none" and not is_path(config.weights):
        raise UserError(f"model.weights is '{config.weights}': diffusers:{name} has none of its own; write none, or a file")

    def model(settings: dict[str, Any]) -> nn.Module:
        try:
            network: nn.Module = made(**{key: value for key, value in settings.items() if key != "_class_name"})
        except Exception as error:  # whatever its constructor raises
            told = f"{type(error).__name__}: {error}".splitlines()[0][:300]
            raise UserError(f"diffusers:{name}: does not take model.args ({told})") from error
        return network

    read = None if config.weights == "none" else partial(read_checkpoint, Path(config.weights))
    return Denoiser(
        f"diffusers:{name}", partial(_make, model, {"_class_name": name, **config.args}), partial(_parts, kind), kind.call,
        channels=None, size=None, read=read, spare=kind.spare, text=kind.text(config.args), flow=kind.flow,
        betas=kind.betas, latents=kind.vae, more=partial(kind.more, config.args), square=kind.square,
    )  # fmt: skip


def _make(model: Callable[[dict[str, Any]], nn.Module], settings: Mapping[str, Any], shape: Shape) -> nn.Module:
    network = model(kind_of(settings).build(settings, shape))
    drops: list[Any] = [module for module in network.modules() if hasattr(module, "token_drop")]
    for module in drops:
        module.dropout_prob = 0.0  # which class is dropped is drawn by the task, the same for every split of a batch
    _in_order(network)
    return network


def _in_order(network: nn.Module) -> None:
    """Children in the order in which they are called: a UNet defines its way up before its middle, PixArt what looks at times and
    texts at the end."""
    children = network._modules
    if "adaln_single" in children:
        for name in ("transformer_blocks", "norm_out", "proj_out"):
            children[name] = children.pop(name)
    if "mid_block" in children and "up_blocks" in children:
        for name in ("up_blocks", "conv_norm_out", "conv_act", "conv_out"):
            children[name] = children.pop(name)


def _parts(kind: Kind, network: nn.Module, shape: Shape) -> Parts:
    del shape
    return Parts((kind.inputs,), (kind.outputs,), class_tables(network), kind.head, kind.packed)
