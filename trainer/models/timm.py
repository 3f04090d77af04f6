"""`timm:NAME`: every architecture of timm with its published weights, and models saved in timm's own format.

NAME is an architecture (`resnet18`), one with the tag of its weights (`resnet18.a1_in1k`), a folder that timm saved
(`config.json` and `model.safetensors`), or a repository of the hub in the same format (`owner/name`).
"""

from __future__ import annotations

import inspect
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property, partial
from pathlib import Path
from typing import Any

import torch
from torch import nn

from trainer.config import UserError, nearest
from trainer.config.run import Model
from trainer.models.base import Checkpoint, Need, Origin, WrongSizeError
from trainer.models.file import read_checkpoint
from trainer.models.place import Place
from trainer.models.torchvision import is_path
from trainer.spec import Interpolation

_RESERVED = {"num_classes": "the data", "in_chans": "model.adapt.in_channels", "img_size": "model.adapt.image_size",
             "pretrained": "model.weights", "checkpoint_path": "model.weights", "pretrained_cfg": "model.weights",
             "pretrained_cfg_overlay": "model.weights", "cache_dir": "HF_HOME", "features_only": "",
             "global_pool": ""}  # fmt: skip
_MODES: dict[str, Interpolation] = {"bilinear": "bilinear", "bicubic": "bicubic", "nearest": "nearest"}
_OPEN_CLIP = ("open_clip_model", ("open_clip_pytorch_model",))


def origin(rest: str, config: Model) -> Origin:
    """A model of timm; it is built with as many outputs as there are classes, and at the size of the task where it has one.

    The checkpoint goes through timm's own loader for the architecture, which renames the tensors of other projects and resamples
    position embeddings and windows to the size that is asked for. Raises UserError.
    """
    source = Source(rest, config)
    size = max(source.facts["input_size"][1:])
    read = None if config.weights == "none" else source.read
    known = config.weights != "none" or source.place is not None
    return Origin(
        f"timm:{rest}", partial(source.make, channels=source.channels), sized=True, image_size=size,
        mean=tuple(source.facts["mean"]) if known else None, std=tuple(source.facts["std"]) if known else None,
        read=read, interpolation=_MODES.get(source.facts["interpolation"]) if known else None, shaped=source.make,
        channels=source.channels,
    )  # fmt: skip


def needs(rest: str, config: Model) -> list[Need]:
    """The files of the weights, and the description of a model that is not timm's own."""
    source = Source(rest, config)
    what = f"the weights {config.weights} of timm:{rest}"
    found = source.place.needs(what, ("config.json",)) if source.place is not None and config.weights == "none" else []
    if config.weights == "none":
        return found if source.place is not None and source.place.path is None else []
    if is_path(config.weights) and not Path(config.weights).is_dir():
        return [Need(what, Path(config.weights))]
    place, stem, pickles = source.published()
    return place.needs(what, ("config.json",) if source.place is not None else (), stem, pickles)


@dataclass
class Source:
    """What `rest` and the model's settings mean. `size`: the side that `make` was last asked for."""

    rest: str
    config: Model
    size: int = 0

    def __post_init__(self) -> None:
        for key in self.config.args.keys() & _RESERVED.keys():
            instead = f"; it follows from {_RESERVED[key]}" if _RESERVED[key] else ""
            raise UserError(f"model.args.{key} cannot be set for timm:{self.rest}{instead}")

    @cached_property
    def place(self) -> Place | None:
        """The folder or the repository that `rest` names; None for one of timm's architectures."""
        return Place.of(self.rest) if "/" in self.rest or Path(self.rest).is_dir() else None

    @cached_property
    def saved(self) -> tuple[dict[str, Any], str, dict[str, Any]]:
        """The facts, the architecture and the arguments that a saved model's config.json gives."""
        assert self.place is not None
        found = self.place.config("timm")
        facts = dict(found.get("pretrained_cfg") or {k: v for k, v in found.items() if k not in ("architecture", "num_features")})
        facts |= {key: found[key] for key in ("num_classes", "label_names") if key in found}
        if "label_names" not in facts and isinstance(facts.get("labels"), list):
            facts["label_names"] = facts.pop("labels")
        name, args = found.get("architecture"), found.get("model_args") or {}
        if not isinstance(name, str) or not isinstance(args, dict):
            raise UserError(f"{self.place.name}: its config.json names no architecture, so it is no model that timm saved")
        return facts, name, args

    @cached_property
    def facts(self) -> dict[str, Any]:
        """timm's description of the weights: input_size [c, h, w], mean, std, interpolation, num_classes, label_names …"""
        from timm.models import get_pretrained_cfg, is_model, list_models

        if self.place is not None:
            from timm.models import PretrainedCfg

            known = {key: value for key, value in self.saved[0].items() if key in inspect.signature(PretrainedCfg).parameters}
            if not is_model(self.saved[1]):
                raise UserError(f"{self.place.name}: timm has no architecture '{self.saved[1]}' (its config.json names it)")
            return {**PretrainedCfg(**known).to_dict(), "architecture": self.saved[1]}
        name, dot, tag = self.rest.partition(".")
        if not is_model(name):
            raise UserError(f"model.source: timm has no architecture '{name}'{nearest(name, list_models())}")
        tags = tags_of(name)
        weights = self.config.weights
        if dot and tag not in tags:
            raise UserError(f"model.source: timm:{name} has no weights '{tag}'{nearest(tag, tags)}")
        if weights not in ("none", "DEFAULT") and not is_path(weights):
            if weights not in tags:
                near = nearest(weights, [*tags, "DEFAULT", "none"]) or f"; known: {', '.join(tags)}, DEFAULT, none"
                raise UserError(f"model.weights: timm:{name} has no weights '{weights}'{near}, or the path of a file")
            if dot and tag != weights:
                raise UserError(f"model.weights is {weights}, and model.source asks for {tag}; write weights: DEFAULT")
            tag = weights
        if weights == "DEFAULT" and not tags:
            raise UserError(f"model.weights: timm has no published weights for {name}; write the path of a file, or none")
        found = get_pretrained_cfg(f"{name}.{tag}" if tag else name)
        if found is None:
            raise UserError(f"model.source: timm:{name} does not say what its weights take; name a folder that timm saved")
        return {**found.to_dict(), "architecture": name}

    @property
    def channels(self) -> int:
        """The channels that the weights take."""
        return int(self.facts["input_size"][0])

    def args(self, size: int) -> dict[str, Any]:
        """What the architecture is built with, beside classes."""
        own = dict(self.saved[2]) if self.place is not None else {}
        own = {key: value for key, value in own.items() if key not in ("num_classes", "in_chans", "img_size")}
        given = {**own, **self.config.args, "in_chans": self.channels}
        fixed = self.facts.get("fixed_input_size") or (self.place is not None and "img_size" in self.saved[2])
        if fixed:
            given["img_size"] = size
        return given

    def build(self, classes: int, size: int, **more: Any) -> nn.Module:
        import timm

        try:
            network: nn.Module = timm.create_model(self.facts["architecture"], num_classes=classes, **{**self.args(size), **more})
        except UserError:
            raise
        except Exception as error:  # an assertion about sizes, an argument it does not know: whatever its constructor raises
            told = f"{type(error).__name__}: {error}".splitlines()[0][:300]
            given = f" with model.args {dict(self.config.args)}" if self.config.args else ""
            raise WrongSizeError(f"timm:{self.rest} cannot be built for images of {size} x {size}{given} ({told})") from error
        if not getattr(network, "num_classes", classes):
            raise UserError(f"timm:{self.rest}: has no classifier")
        return network

    def make(self, classes: int, size: int, channels: int) -> nn.Module:
        self.size = size
        return self.build(classes, size, in_chans=channels)

    def published(self) -> tuple[Place, str, tuple[str, ...]]:
        """Where the weights are, and what their files are called."""
        if Path(self.config.weights).is_dir() and is_path(self.config.weights):
            return Place(Path(self.config.weights)), "model", ("pytorch_model",)
        if self.place is not None:
            if self.config.weights != "DEFAULT":
                raise UserError(f"model.weights: timm:{self.rest} has the weights DEFAULT (its own), a file's path, or none")
            return self.place, "model", ("pytorch_model",)
        repository, name = self.facts.get("hf_hub_id"), self.facts.get("hf_hub_filename") or ""
        if not repository or self.facts.get("custom_load") == "hf":
            url = self.facts.get("url") or self.facts.get("origin_url") or "its author's page"
            raise UserError(
                f"timm:{self.rest}: its weights {self.config.weights} are not on the hub in timm's format; download them from "
                f"{url} and write the file's path as model.weights"
            )
        repository, _, revision = repository.partition("@")
        place = Place(None, repository, revision)
        if name.startswith("open_clip"):
            return place, *_OPEN_CLIP
        stem = Path(name).stem if name else "model"
        return (place, stem, ()) if name.endswith(".safetensors") else (place, "model", (stem if name else "pytorch_model",))

    def read(self) -> Checkpoint:
        """The tensors under the architecture's own names, at the size that `make` was asked for."""
        own = is_path(self.config.weights)
        if own and not Path(self.config.weights).is_dir():
            found = read_checkpoint(Path(self.config.weights))
            tensors, classes, source = found.tensors, found.classes, found.source
        else:
            place, stem, pickles = self.published()
            tensors, classes, source = place.weights(stem, pickles), None, f"{place.name} ({self.config.weights})"
        if not own:
            classes = self.classes()
        official = not own and self.place is None
        return Checkpoint(source, self.native(tensors, source, own=own), classes, official=official)

    def native(self, tensors: Mapping[str, torch.Tensor], source: str, *, own: bool) -> dict[str, torch.Tensor]:
        """The tensors as timm's loader puts them into the architecture (a file of one's own may have another head)."""
        size, given = self.size or max(self.facts["input_size"][1:]), dict(tensors)
        with torch.device("meta"):
            plain = self.build(self.facts["num_classes"], size)
        names = plain.state_dict().keys()
        first = self.facts.get("first_conv")
        if own and len(names & given.keys()) * 2 > len(names):
            return given
        heads = self.facts.get("classifier") or ()
        head = f"{heads if isinstance(heads, str) else heads[0]}.weight" if heads else ""
        classes = given[head].shape[0] if own and head in given else self.facts["num_classes"]
        overlay = {"state_dict": given, "source": "", "file": None, "hf_hub_id": None, "num_classes": classes}
        if own and isinstance(first, str) and f"{first}.weight" in given:
            overlay["input_size"] = (given[f"{first}.weight"].shape[1], *self.facts["input_size"][1:])
        try:
            with torch.random.fork_rng(devices=[]):
                network = self.build(
                    classes, size, pretrained=True, pretrained_cfg=None, pretrained_cfg_overlay={**self.facts, **overlay}
                )
        except UserError as error:
            told = str(error.__cause__ or error).replace("\n", " ")[:300]
            raise UserError(f"{source}: does not hold the weights of timm:{self.rest}, or only a part of them: {told}") from error
        return network.state_dict()

    def classes(self) -> tuple[str, ...] | None:
        """The class names of the published weights, where they are known."""
        names = self.facts.get("label_names")
        if isinstance(names, dict):
            names = [names[key] for key in sorted(names, key=lambda key: int(key))]
        if names:
            described = self.facts.get("label_descriptions") or {}
            return tuple(str(described.get(name, name)) for name in names)
        return None if self.place is not None else imagenet(self.facts["num_classes"], str(self.facts.get("tag") or ""))


def tags_of(name: str) -> list[str]:
    """The tags of an architecture's published weights."""
    from timm.models import list_pretrained

    return [found.partition(".")[2] for found in list_pretrained(f"{name}.*") if found.partition(".")[0] == name]


def imagenet(count: int, tag: str) -> tuple[str, ...] | None:
    """The class names that weights of this tag and class count have: ImageNet's 1,000, or those of its larger sets."""
    if count == 1000 and "in1k" in tag:
        from torchvision.models import ResNet18_Weights

        return tuple(ResNet18_Weights.DEFAULT.meta["categories"])
    if "in12k" not in tag and "in2" not in tag:
        return None
    from timm.data import ImageNetInfo, infer_imagenet_subset

    subset = infer_imagenet_subset({"num_classes": count, "tag": tag})
    if subset is None:
        return None
    info = ImageNetInfo(subset)
    names = [info.index_to_description(index).partition(",")[0] for index in range(info.num_classes())]
    return tuple(names) if len(names) == count else None
