"""`transformers:NAME_OR_FOLDER`: an image classifier in the format of Hugging Face's transformers.

A folder that `save_pretrained` wrote (`config.json`, `model.safetensors`, `preprocessor_config.json`), or a repository of the hub
(`owner/name`, `owner/name@revision`). Only architectures that transformers itself has: code of a repository is never run.
"""

from __future__ import annotations

import copy
from dataclasses import dataclass
from functools import cached_property, partial
from pathlib import Path
from typing import Any, cast

import torch
from torch import nn

from trainer.config import UserError, nearest
from trainer.config.run import Model
from trainer.models.base import Checkpoint, Need, Origin, WrongSizeError, first_few
from trainer.models.file import read_checkpoint
from trainer.models.place import Place, refuse_code
from trainer.models.torchvision import is_path
from trainer.spec import Interpolation

FILES = ("config.json", "preprocessor_config.json")
_MODES: dict[int, Interpolation] = {0: "nearest", 2: "bilinear", 3: "bicubic"}  # PIL's numbers
_RESERVED = {"num_labels": "the data", "id2label": "the data", "label2id": "the data", "image_size": "model.adapt.image_size",
             "num_channels": "model.adapt.in_channels", "trust_remote_code": "", "auto_map": ""}  # fmt: skip


def origin(rest: str, config: Model) -> Origin:
    """A classifier of transformers; `model.args` change its configuration. Its forward takes images and gives the logits alone.

    Raises UserError for a folder that is none, that asks for code of its author's, or whose model is no image classifier.
    """
    source = Source(rest, config)
    prepared = source.prepared()
    return Origin(
        f"transformers:{rest}", partial(source.make, channels=source.channels), sized=True, image_size=prepared.size,
        mean=prepared.mean, std=prepared.std, read=None if config.weights == "none" else source.read,
        interpolation=prepared.interpolation, shaped=source.make, channels=source.channels,
    )  # fmt: skip


def needs(rest: str, config: Model) -> list[Need]:
    """The files of the folder, or of the repository in the hub's cache."""
    source = Source(rest, config)
    what = f"the weights {config.weights} of transformers:{rest}"
    if is_path(config.weights) and not Path(config.weights).is_dir():
        return [Need(what, Path(config.weights))]
    return source.published.needs(what, FILES)


@dataclass(frozen=True)
class Prepared:
    """What `preprocessor_config.json` says of images in [0, 1]; None where it does not."""

    size: int | None = None
    mean: tuple[float, ...] | None = None
    std: tuple[float, ...] | None = None
    interpolation: Interpolation | None = None


@dataclass
class Source:
    rest: str
    config: Model

    def __post_init__(self) -> None:
        for key in self.config.args.keys() & _RESERVED.keys():
            instead = f"; it follows from {_RESERVED[key]}" if _RESERVED[key] else ""
            raise UserError(f"model.args.{key} cannot be set for transformers:{self.rest}{instead}")
        weights = self.config.weights
        if weights not in ("none", "DEFAULT") and not is_path(weights):
            raise UserError(f"model.weights: transformers:{self.rest} has the weights DEFAULT (its own), a path, or none")

    @cached_property
    def place(self) -> Place:
        return Place.of(self.rest)

    @property
    def published(self) -> Place:
        """Where the weights are: a folder of `model.weights`, or the source itself."""
        return Place(Path(self.config.weights)) if is_path(self.config.weights) else self.place

    @cached_property
    def settings(self) -> Any:
        """The configuration (a `PretrainedConfig`), with `model.args`."""
        from transformers import CONFIG_MAPPING
        from transformers.models.auto.modeling_auto import MODEL_FOR_IMAGE_CLASSIFICATION_MAPPING_NAMES as CLASSIFIERS

        found = self.place.config("transformers")
        kind = found.get("model_type")
        if not isinstance(kind, str) or kind not in CONFIG_MAPPING:
            raise UserError(
                f"{self.place.name}: transformers has no architecture '{kind}' (model_type in config.json)"
                f"{nearest(str(kind), CLASSIFIERS)}"
            )
        if kind not in CLASSIFIERS:
            raise UserError(
                f"{self.place.name}: a {kind} is no image classifier of transformers; those are {', '.join(sorted(CLASSIFIERS))}"
            )
        try:
            settings = CONFIG_MAPPING[kind].from_dict(found)
            known = settings.to_dict()
            for key, value in self.config.args.items():
                if key not in known:
                    raise UserError(
                        f"model.args.{key}: the configuration of {self.place.name} has no such value{nearest(key, known)}"
                    )
                setattr(settings, key, value)
        except UserError:
            raise
        except Exception as error:  # checks of their own, of any kind
            raise UserError(f"{self.place.name}: transformers does not take its config.json: {error}") from error
        settings.architectures = settings.architectures or []
        settings.dtype = torch.float32  # the run file says the precision of training
        return settings

    @property
    def channels(self) -> int:
        return int(getattr(_vision(self.settings), "num_channels", None) or 3)

    def make(self, classes: int, size: int, channels: int) -> nn.Module:
        """The classifier with random weights."""
        from transformers import AutoModelForImageClassification

        settings = copy.deepcopy(self.settings)
        settings.num_labels = classes
        vision = _vision(settings)
        try:
            if getattr(vision, "image_size", None) is not None:
                vision.image_size = [size, size] if isinstance(vision.image_size, list | tuple) else size
            if channels != self.channels:
                vision.num_channels = channels
            network = AutoModelForImageClassification.from_config(settings, trust_remote_code=False)
        except Exception as error:  # whatever its constructor raises
            told = f"{type(error).__name__}: {error}".splitlines()[0][:300]
            raise WrongSizeError(
                f"transformers:{self.rest} cannot be built for {size} x {size} images of {channels} channels ({told})"
            ) from error
        return logits_only(network, flip=bool(self.raw.get("do_flip_channel_order")) and channels == self.channels)

    @cached_property
    def raw(self) -> dict[str, Any]:
        """`preprocessor_config.json`; empty where there is none."""
        found = self.place.json("preprocessor_config.json") or {}
        refuse_code(found, self.place.name)
        return found

    def prepared(self) -> Prepared:
        """What the library's image processor does, in graft's words: pixels in [0, 1], then (x - mean) / std."""
        raw = self.raw
        size = _side(raw.get("crop_size")) if raw.get("do_center_crop", True) and raw.get("crop_size") else _side(raw.get("size"))
        built = getattr(_vision(self.settings), "image_size", None)
        if built is not None:  # the network's own size counts: its positions are made for it
            size = _side(built)
        if not raw:
            return Prepared(size)
        mean, std = raw.get("image_mean"), raw.get("image_std")
        if raw.get("do_normalize", True) is False or mean is None or std is None:
            mean, std = [0.0] * self.channels, [1.0] * self.channels
        means = [float(m) for m in mean] if isinstance(mean, list) else [float(mean)] * self.channels
        deviations = [float(s) for s in std] if isinstance(std, list) else [float(std)] * self.channels
        # value = 255 * factor * pixel - offset; what follows is (value - mean) / std
        factor = 255.0 * float(raw.get("rescale_factor", 1 / 255)) if raw.get("do_rescale", True) else 255.0
        offset = 1.0 if raw.get("rescale_offset") else 0.0
        return Prepared(
            size, tuple(_round((m + offset) / factor) for m in means), tuple(_round(s / factor) for s in deviations),
            _MODES.get(raw.get("resample", -1)),
        )  # fmt: skip

    def read(self) -> Checkpoint:
        """The tensors of the folder or repository, with the class names of `id2label`; a file of one's own as it is."""
        weights = self.config.weights
        if is_path(weights) and not Path(weights).is_dir():
            return read_checkpoint(Path(weights))
        tensors = self.native(self.published.weights())
        return Checkpoint(f"{self.published.name} ({weights})", tensors, self.classes(), grid=self.grid)

    @property
    def grid(self) -> tuple[int, int] | None:
        """Rows and columns of the patches that its weights were trained with, where an image was not square."""
        size, patch = (getattr(_vision(self.settings), key, None) for key in ("image_size", "patch_size"))
        if not isinstance(size, list | tuple) or len(size) != 2 or patch is None:
            return None
        patches = patch if isinstance(patch, list | tuple) else (patch, patch)
        return int(size[0]) // int(patches[0]), int(size[1]) // int(patches[1])

    def native(self, tensors: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
        """The tensors under the names that the network has now: transformers keeps older ones in its files."""
        from transformers import AutoModelForImageClassification

        with torch.device("meta"):
            kind = type(AutoModelForImageClassification.from_config(self.settings, trust_remote_code=False))
        try:
            with torch.random.fork_rng(devices=[]):
                network, told = kind.from_pretrained(
                    None, config=copy.deepcopy(self.settings), state_dict=dict(tensors), output_loading_info=True,
                    ignore_mismatched_sizes=True,
                )  # fmt: skip
        except Exception as error:  # whatever their loader raises
            reason = f"{type(error).__name__}: {error}".splitlines()[0][:300]
            raise UserError(f"{self.published.name}: transformers cannot load its weights ({reason})") from error
        wrong = [str(entry[0]) for entry in told["mismatched_keys"]]
        if wrong:
            raise UserError(
                f"{self.published.name}: its weights do not fit its config.json: {first_few(wrong, 3)} have other shapes"
            )
        found = {name: value for name, value in network.state_dict().items() if name not in told["missing_keys"]}
        return found | {name: tensors[name] for name in told["unexpected_keys"] if name in tensors}

    def classes(self) -> tuple[str, ...] | None:
        known = self.settings.id2label or {}
        names = [known.get(index) for index in range(self.settings.num_labels)]
        if any(name is None for name in names) or names == [f"LABEL_{index}" for index in range(len(names))]:
            return None
        return tuple(str(name) for name in names)


class _Logits(nn.Module):
    """Mixed into a classifier's own class: its forward takes images [n, c, h, w] and gives logits [n, labels]."""

    flip: bool = False

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        if self.flip:  # its weights expect blue, green, red
            images = images.flip(1)
        return cast(torch.Tensor, super().forward(pixel_values=images).logits)


def logits_only(network: nn.Module, *, flip: bool = False) -> nn.Module:
    """The classifier itself, of a class whose forward gives logits; names of parameters and `save_pretrained` stay."""
    plain = type(network)
    network.__class__ = type(plain.__name__, (_Logits, plain), {"flip": flip})
    return network


def _vision(settings: Any) -> Any:
    """The part of a configuration that says what images are taken (CLIP and SigLIP have one for texts as well)."""
    return getattr(settings, "vision_config", None) or settings


def _side(size: Any) -> int | None:
    """The side that `size` means: a number, [h, w], or {height, width} or {shortest_edge}."""
    if isinstance(size, dict):
        size = size.get("height") or size.get("shortest_edge")
    elif isinstance(size, list | tuple):
        size = max(size)
    return int(size) if size else None


def _round(value: float) -> float:
    return float(f"{value:.8g}")
