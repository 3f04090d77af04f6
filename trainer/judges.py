"""Networks whose features tell how like the data generated images are: torch-fidelity's own, or one of any source."""

from __future__ import annotations

import warnings
from pathlib import Path
from typing import Any

import torch
from torch import nn

from trainer.config import Run, UserError
from trainer.config.fidelity import Distances
from trainer.config.model import Model
from trainer.config.pictures import Pictures
from trainer.config.task import Task as Config
from trainer.data import Batch
from trainer.lpips import Lpips, trunk_needs
from trainer.models.base import Need
from trainer.models.file import read_checkpoint
from trainer.perceptual import Perceptual
from trainer.references import seeing
from trainer.spec import Judge
from trainer.tasks.base import Likens, Makes, Perceives, Task, Translates
from trainer.tasks.diffusion import Diffusion

INCEPTION = "https://github.com/toshas/torch-fidelity/releases/download/v0.2.0/weights-inception-2015-12-05-6726825d.pth"
VGG16 = "https://download.pytorch.org/models/vgg16-397923af.pth"
_AT_ONCE = 64  # images in one pass


def judge(config: Distances, device: torch.device) -> Judge:
    """The judge that is asked for, on a device. Raises UserError where its weights are not there: nothing is downloaded."""
    return Standard(config, device) if config.features is None else Other(config.features, device)


def give(run: Run, task: Task, device: torch.device, *, load_weights: bool = True) -> None:
    """Give a task that generates its judge, and one that translates its distances of features, as the run file asks for them.

    Without `load_weights` nothing is judged, and the distances are those of networks without their values. Raises UserError.
    """
    asked = getattr(run.task, "lpips", None)
    lpips = None if asked is None else Lpips(asked, device, load_weights=load_weights)
    if isinstance(task, Translates):
        channels = getattr(run.task, "channels", run.model.adapt.in_channels)
        distances: dict[str, Perceives] = {} if lpips is None else {"lpips": lpips}
        if isinstance(run.task, Pictures) and run.task.perceptual is not None:
            distances["perceptual"] = Perceptual(run.task.perceptual, channels, device, load_weights=load_weights)
        task.perceive(distances, run.weights)
    if isinstance(task, Diffusion):
        task.gauge(lpips)
    fidelity = getattr(run.task, "fidelity", None)
    if isinstance(task, Makes) and fidelity is not None and load_weights:
        task.compare(judge(fidelity, device))
    if isinstance(task, Likens) and isinstance(fidelity, Distances) and load_weights:
        task.liken(judge(fidelity, device))


def all_needs(task: Config) -> list[Need]:
    """The files of the networks that judge or compare what a task makes, as far as no other key names them."""
    fidelity, lpips = getattr(task, "fidelity", None), getattr(task, "lpips", None)
    return [*(needs(fidelity) if fidelity is not None else []), *(trunk_needs(lpips) if lpips is not None else [])]


def needs(config: Distances) -> list[Need]:
    """The files of torch-fidelity's own networks, as far as they are used."""
    if config.features is not None:
        return []
    wanted = {VGG16 if asked == "precision_recall" else INCEPTION for asked in config.measure}
    names = {INCEPTION: "Inception v3 of torch-fidelity", VGG16: "VGG16 of torchvision"}
    return [Need(names[url], _place(url), url, url.rpartition("-")[2].removesuffix(".pth")) for url in sorted(wanted)]


def _place(url: str) -> Path:
    return Path(torch.hub.get_dir()) / "checkpoints" / Path(url).name


class Standard:
    """The features of torch-fidelity: Inception v3 as it was in 2015, and for precision and recall VGG16."""

    name = "torch-fidelity"

    def __init__(self, config: Distances, device: torch.device) -> None:
        from torch_fidelity.feature_extractor_inceptionv3 import FeatureExtractorInceptionV3
        from torch_fidelity.feature_extractor_vgg16 import FeatureExtractorVGG16

        for need in needs(config):
            if not need.file.is_file():
                raise UserError(
                    f"task.fidelity: {need.what} is not here; run `graft fetch RUN` where there is a network, or put {need.url} "
                    f"into {need.file.parent}; or name other features: {{source: timm:resnet18, weights: DEFAULT}}"
                )
            read_checkpoint(need.file)  # raises for a file that holds more than tensors, which torch-fidelity would run
        self.layers: dict[str, str] = {asked: _LAYERS[asked] for asked in config.measure}
        self.widths = {layer: _WIDTHS[layer] for layer in self.layers.values()}
        seen: list[str] = [layer for layer in ("2048", "logits_unbiased") if layer in self.widths]
        self._parts: list[tuple[list[str], nn.Module]] = []
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of torch, about reading a pickle that was looked at above
            if seen:
                made = FeatureExtractorInceptionV3("inception-v3-compat", seen, str(_place(INCEPTION)))
                self._parts.append((seen, made.to(device)))
            if "fc2_relu" in self.widths:
                made = FeatureExtractorVGG16("vgg16", ["fc2_relu"], str(_place(VGG16)))
                self._parts.append((["fc2_relu"], made.to(device)))
        self._device = device

    def __call__(self, images: torch.Tensor) -> dict[str, torch.Tensor]:
        """The features of images, in passes of a fixed size."""
        found: dict[str, list[torch.Tensor]] = {layer: [] for layer in self.widths}
        with torch.no_grad(), torch.autocast(self._device.type, enabled=False):
            for part in torch.split(_coloured(images), _AT_ONCE):
                for layers, network in self._parts:
                    for layer, value in zip(layers, network(part.to(self._device)), strict=True):
                        found[layer].append(value.float().cpu())
        return {layer: torch.cat(values) for layer, values in found.items()}


_LAYERS = {"fid": "2048", "kid": "2048", "is": "logits_unbiased", "precision_recall": "fc2_relu"}
_WIDTHS = {"2048": 2048, "logits_unbiased": 1008, "fc2_relu": 4096}


class Other:
    """What goes into the output layer of a classifier of any source."""

    def __init__(self, model: Model, device: torch.device) -> None:
        self.name = f"{model.source} ({model.weights})"
        built = seeing(model, "task.fidelity.features", device)
        self._network, self._spec, self._device = built.network, built.spec, device
        self._given: list[torch.Tensor] = []
        self._network.get_submodule(built.head[0]).register_forward_pre_hook(self._take)
        side = built.spec.image_size
        width = self(torch.zeros(1, built.spec.in_channels, side, side, dtype=torch.uint8))["features"].shape[1]
        self.widths = {"features": width}
        self.layers = dict.fromkeys(("fid", "kid", "precision_recall"), "features")

    def _take(self, module: nn.Module, given: tuple[Any, ...]) -> None:
        self._given.append(given[0])

    def __call__(self, images: torch.Tensor) -> dict[str, torch.Tensor]:
        """The features of images, resized and normalised for the network, averaged over what they still have of the image."""
        found = []
        size = (self._spec.image_size, self._spec.image_size)
        channels = self._spec.in_channels
        with torch.no_grad(), torch.autocast(self._device.type, enabled=False):
            for part in torch.split(images, _AT_ONCE):
                pixels = (_coloured(part) if channels == 3 else part).to(self._device).float()
                if pixels.shape[1] != channels:
                    raise UserError(
                        f"task.fidelity.features: {self.name} takes {channels} channels and the images have {pixels.shape[1]}; "
                        "write features.adapt.in_channels"
                    )
                if pixels.shape[2:] != size:
                    pixels = nn.functional.interpolate(pixels, size=size, mode="bilinear", antialias=True, align_corners=False)
                self._given.clear()
                nothing = torch.zeros(len(pixels), dtype=torch.int64)
                self._network(Batch(pixels, nothing, nothing).to(self._device, self._spec).images)
                value = self._given[0].float()
                value = value.mean(dim=1) if value.dim() == 3 else value.flatten(2).mean(dim=2) if value.dim() == 4 else value
                found.append(value.cpu())
        return {"features": torch.cat(found)}


def _coloured(images: torch.Tensor) -> torch.Tensor:
    """Grey images as three channels, since these networks were trained on colours."""
    return images.expand(-1, 3, -1, -1) if images.shape[1] == 1 else images
