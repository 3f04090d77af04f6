"""`torchvision:NAME`: every classification architecture of torchvision, with its published weights or a file of one's own."""

from __future__ import annotations

import http.client
import re
import socket
import sys
from collections.abc import Mapping
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import nn
from torchvision import models

from trainer.config import UserError, nearest
from trainer.config.run import Model
from trainer.models.base import Checkpoint, Need, Origin
from trainer.models.download import alone
from trainer.models.file import read_checkpoint
from trainer.spec import Interpolation

_IMAGENET = ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225))
_HALF = ((0.5, 0.5, 0.5), (0.5, 0.5, 0.5))
_RESERVED = {"weights": "model.weights", "num_classes": "the data", "progress": "", "image_size": "model.adapt.image_size",
             "input_size": "model.adapt.image_size", "transform_input": "data.normalize"}  # fmt: skip
_HASH = re.compile(r"-([a-f0-9]*)\.")
_OLD_DENSE = re.compile(r"(.*denselayer\d+\.(?:norm|relu|conv))\.([12]\.\w+)")
_MODES: dict[str, Interpolation] = {"nearest": "nearest", "bilinear": "bilinear", "bicubic": "bicubic"}
_STALL_SECONDS = 15.0


def origin(rest: str, config: Model) -> Origin:
    """A classification architecture by its torchvision name.

    GoogLeNet and Inception v3 were trained on pixels in [-1, 1]; torchvision's `transform_input` turns ImageNet-normalised pixels
    into those. Here it stays off and the images are normalised to [-1, 1] at once, which is the same and also holds for other
    numbers of channels. GoogLeNet's auxiliary heads were never trained, so with weights they exist only if args.aux_logits asks.
    """
    _check(rest)
    builder = models.get_model_builder(rest)
    family = builder.__module__.rpartition(".")[2]
    weights = _weights(rest, config.weights)
    args: dict[str, Any] = dict(config.args)
    for key in args.keys() & _RESERVED.keys():
        instead = f"; it follows from {_RESERVED[key]}" if _RESERVED[key] else ""
        raise UserError(f"model.args.{key} cannot be set for torchvision:{rest}{instead}")
    if family in ("googlenet", "inception"):
        args.setdefault("init_weights", True)  # what torchvision does too, with a warning
        if family == "googlenet" and config.weights != "none":
            args.setdefault("aux_logits", False)

    def make(classes: int, image_size: int) -> nn.Module:
        extra: dict[str, Any] = {}
        if family == "vision_transformer":
            _multiple(rest, image_size, int(rest.rpartition("_")[2]), "its patches")
            extra["image_size"] = image_size
        elif family == "maxvit":
            _multiple(rest, image_size, 7 * 32, "7 windows at a stride of 32")
            extra["input_size"] = (image_size, image_size)
        try:
            network: nn.Module = builder(weights=None, num_classes=classes, **args, **extra)
        except (TypeError, ValueError) as error:
            raise UserError(f"torchvision:{rest} does not take model.args {dict(config.args)}: {error}") from error
        return network

    image_size = 299 if rest == "inception_v3" else 224
    mode: Interpolation | None = None
    mean, std = _HALF if family in ("googlenet", "inception") else _IMAGENET
    if weights is not None:
        transforms = weights.transforms()
        image_size, mode = transforms.crop_size[0], _MODES.get(transforms.interpolation.value)
        if family not in ("googlenet", "inception"):
            mean, std = tuple(transforms.mean), tuple(transforms.std)
    known = config.weights != "none" or family in ("googlenet", "inception")
    read = None if config.weights == "none" else partial(_read, rest, config.weights, weights)
    return Origin(
        f"torchvision:{rest}", make, sized=True, image_size=image_size,
        mean=mean if known else None, std=std if known else None, read=read, interpolation=mode,
    )  # fmt: skip


def _check(name: str) -> None:
    known = models.list_models(module=models)
    if name in known:
        return
    if name in models.list_models():
        room = models.get_model_builder(name).__module__.split(".")[2]
        raise UserError(f"model.source: torchvision's '{name}' is a network for {room.replace('_', ' ')}, not a plain classifier")
    raise UserError(f"model.source: torchvision has no classification network '{name}'{nearest(name, known)}")


def _multiple(name: str, size: int, unit: int, why: str) -> None:
    below = size // unit * unit
    if size != below:
        either = " or ".join(str(s) for s in (below, below + unit) if s)
        raise UserError(
            f"model.adapt.image_size: {name} takes images whose side is a multiple of {unit} ({why}), "
            f"and {size} = {size // unit} x {unit} + {size - below}; write {either}"
        )


def is_path(weights: str) -> bool:
    """Whether `model.weights` names a file; a name of torchvision's has neither a slash nor a suffix."""
    return "/" in weights or bool(Path(weights).suffix)


def _weights(name: str, weights: str) -> Any:
    """The enum member that is meant, also by a file that has the name of its download; None for `none` and other files."""
    members: Mapping[str, Any] = models.get_model_weights(name).__members__
    if weights == "none":
        return None
    if is_path(weights):
        return next((m for m in members.values() if Path(m.url).name == Path(weights).name), None)
    if weights not in members:
        near = nearest(weights, [*members, "none"]) or f"; known: {', '.join(members)}, none"
        raise UserError(f"model.weights: torchvision:{name} has no weights '{weights}'{near}, or the path of a file")
    return members[weights]


def needs(rest: str, config: Model) -> list[Need]:
    """The published weights in torch.hub's cache, or a file of one's own."""
    _check(rest)
    member, what = _weights(rest, config.weights), f"the weights {config.weights} of torchvision:{rest}"
    if config.weights == "none":
        return []
    if is_path(config.weights):
        return [Need(what, Path(config.weights))]
    file = _cached(member)
    hashed = _HASH.search(file.name)
    return [Need(what, file, member.url, hashed[1] if hashed else "")]


def _cached(member: Any) -> Path:
    return Path(torch.hub.get_dir()) / "checkpoints" / Path(member.url).name


def _read(name: str, weights: str, member: Any) -> Checkpoint:
    found = read_checkpoint(Path(weights) if is_path(weights) else fetch(name, member))
    tensors = found.tensors
    if name.startswith("densenet"):
        tensors = {_OLD_DENSE.sub(r"\1\2", key): value for key, value in tensors.items()}
    if member is None:
        return Checkpoint(found.source, tensors, found.classes)
    untrained = ("aux1.", "aux2.") if name == "googlenet" else ()
    source = f"torchvision's {type(member).__name__}.{member.name}"
    return Checkpoint(source, tensors, tuple(member.meta["categories"] or ()) or None, official=True, untrained=untrained)


def fetch(name: str, member: Any) -> Path:
    """The weights file in torch.hub's cache ($TORCH_HOME/hub/checkpoints); torch.hub downloads and checks what is not there.

    Raises UserError, after a stall of 15 s at most, that says what to put where.
    """
    file = _cached(member)
    if file.is_file():
        return file
    hashed = _HASH.search(file.name)
    advice = (
        f"{file.name} from {member.url}; put it into {file.parent}, or write its path as model.weights, "
        f"or model.weights: none to train without"
    )
    try:
        file.parent.mkdir(parents=True, exist_ok=True)
        with alone(file):
            if not file.is_file():
                _download(member.url, file, hashed[1] if hashed else None)
    except RuntimeError as error:
        raise UserError(f"the download for torchvision:{name} is damaged ({error}); wanted: {advice}") from error
    except (
        OSError,
        http.client.HTTPException,
    ) as error:  # URLError, HTTPError and time-outs are OSErrors, and so is a full or read-only disk
        raise UserError(f"the weights of torchvision:{name} could not be fetched ({error}); wanted: {advice}") from error
    return file


def _download(url: str, file: Path, sha256: str | None) -> None:
    before = socket.getdefaulttimeout()
    socket.setdefaulttimeout(_STALL_SECONDS)  # torch.hub waits for ever on a network that drops packets
    try:
        torch.hub.download_url_to_file(url, str(file), sha256, progress=sys.stderr.isatty())
    finally:
        socket.setdefaulttimeout(before)
