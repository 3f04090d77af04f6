"""Exports in the format of the library that the source came from, so that it loads them by itself."""

from __future__ import annotations

import copy
import inspect
import json
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from torch import nn

from trainer.config import Run, UserError
from trainer.export.heads import added, merged, sources
from trainer.models.diffusers import STEM, Encoder, load, width_of
from trainer.spec import InputSpec

FORMATS = ("timm", "transformers", "diffusers")
_PROBLEMS = {"classify": "single_label_classification", "multilabel": "multi_label_classification", "regress": "regression"}


def has_words(run: Run, network: nn.Module) -> bool:
    """Whether the library of the source can describe the network as it is now: heads of several layers it cannot.

    Of diffusers it is the generator that is described; the head stands beside it in any case.
    """
    scheme = run.model.source.partition(":")[0]
    return scheme == "diffusers" or (scheme in FORMATS and not added(merged(network)).names)


def write(run: Run, network: nn.Module, spec: InputSpec, classes: tuple[str, ...], new: Path) -> str:
    """Write the library's own files into `new`; returns the source of `build()`, which makes the network from that folder.

    timm: `config.json` and `model.safetensors`, for `timm.create_model("local-dir:FOLDER", pretrained=True)`. transformers: also
    `preprocessor_config.json`, for `AutoModelForImageClassification.from_pretrained(FOLDER)`. diffusers: the whole generator with
    the trunk as it learnt, for its class's `from_pretrained(FOLDER)`, beside the classifier. Raises UserError for a network whose
    layers the library cannot describe.
    """
    scheme = run.model.source.partition(":")[0]
    network = network if scheme == "diffusers" else merged(network)
    mode = spec.interpolation if run.data.interpolation == "auto" else run.data.interpolation
    return {"timm": _timm, "transformers": _transformers, "diffusers": _diffusers}[scheme](run, network, spec, classes, mode, new)


def _filled(plain: nn.Module, network: nn.Module, source: str) -> nn.Module:
    """The library's own network with the tensors of the trained one. Raises UserError where they are not the same layers."""
    own, given = plain.state_dict(), network.state_dict()
    odd = [name for name in {**own, **given} if name not in own or name not in given or own[name].shape != given[name].shape]
    if odd:
        raise UserError(
            f"{source}: its library has no words for '{odd[0]}' as it was adapted here, so that it could not load an export "
            "(a head of several layers, other channels than it can take)"
        )
    plain.load_state_dict(given)
    return plain.eval()


def _timm(run: Run, network: nn.Module, spec: InputSpec, classes: tuple[str, ...], mode: str, new: Path) -> str:
    import timm

    from trainer.models.timm import Source

    source = Source(run.model.source.partition(":")[2], run.model.model_copy(update={"weights": "none"}))
    with torch.random.fork_rng(devices=[]):
        plain = _filled(source.build(len(classes), spec.image_size, in_chans=spec.in_channels), network, run.model.source)
    data = {"input_size": (spec.in_channels, spec.image_size, spec.image_size), "mean": spec.mean, "std": spec.std}
    timm.models.save_for_hf(
        plain, str(new), safe_serialization=True, data_config={**data, "interpolation": mode, "crop_pct": _crop(run, spec)},
        model_config={"label_names": list(classes)},
    )  # fmt: skip
    body = ["", "", "def build():", '    return timm.create_model(f"local-dir:{FOLDER}", pretrained=True)', ""]
    return "\n".join(["import timm", "from torchvision.transforms import InterpolationMode, v2", *body])


def _crop(run: Run, spec: InputSpec) -> float:
    return spec.image_size / (run.data.resize_to or spec.image_size)


def _transformers(run: Run, network: nn.Module, spec: InputSpec, classes: tuple[str, ...], mode: str, new: Path) -> str:
    from trainer.models.transformers import Source

    source = Source(run.model.source.partition(":")[2], run.model.model_copy(update={"weights": "none"}))
    with torch.random.fork_rng(devices=[]):
        made: Any = source.make(len(classes), spec.image_size, spec.in_channels)
    plain: Any = _filled(made, network, run.model.source)
    flip = plain.flip
    plain.__class__ = type(plain).__mro__[2]  # the library's own class, under the one whose forward gives logits
    plain.config = copy.deepcopy(plain.config)
    plain.config.problem_type = _PROBLEMS.get(run.task.kind)
    plain.config.id2label = dict(enumerate(classes))
    plain.config.label2id = {name: index for index, name in enumerate(classes)}
    plain.save_pretrained(new)
    side = run.data.resize_to or spec.image_size
    prepared = {
        "image_processor_type": source.raw.get("image_processor_type", "ViTImageProcessor"),
        "do_resize": True, "size": {"height": side, "width": side} if run.data.resize == "squash" else {"shortest_edge": side},
        "do_center_crop": run.data.resize == "crop", "crop_size": {"height": spec.image_size, "width": spec.image_size},
        "do_rescale": True, "rescale_factor": 1 / 255, "do_normalize": True, "image_mean": list(spec.mean),
        "image_std": list(spec.std),
        "resample": {"nearest": 0, "bilinear": 2, "bicubic": 3}[mode], **({"do_flip_channel_order": True} if flip else {}),
    }  # fmt: skip
    (new / "preprocessor_config.json").write_text(json.dumps(prepared, indent=1) + "\n", encoding="utf-8")
    flipped = "images.flip(1)" if flip else "images"
    return "\n".join([
        "from torch import nn",
        "from torchvision.transforms import InterpolationMode, v2",
        "from transformers import AutoModelForImageClassification", "", "",
        "class Logits(nn.Module):", "    def __init__(self, network):", "        super().__init__()",
        "        self.network = network", "", "    def forward(self, images):",
        f"        return self.network(pixel_values={flipped}).logits", "", "", "def build():",
        "    return Logits(AutoModelForImageClassification.from_pretrained(FOLDER))", "",
    ])  # fmt: skip


def _diffusers(run: Run, network: nn.Module, spec: InputSpec, classes: tuple[str, ...], mode: str, new: Path) -> str:
    del mode
    rest = run.model.source.partition(":")[2]
    whole: Any = load(rest)
    if spec.in_channels != whole.config.in_channels:
        raise UserError(
            f"diffusers:{rest}: its {whole.config.in_channels} channels were changed to {spec.in_channels}, and what it "
            f"generates has {whole.config.in_channels}; an export would not be a generator that diffusers loads"
        )
    own, given = whole.state_dict(), network.state_dict()
    trunk = {name: value for name, value in given.items() if name in own}
    whole.load_state_dict({**own, **trunk})
    whole.save_pretrained(new)
    if not (new / f"{STEM}.safetensors").is_file():
        raise UserError(f"diffusers:{rest}: is larger than one file of diffusers holds; an export of it is not supported")
    save_file({name: value.contiguous() for name, value in given.items() if name not in own}, str(new / "head.safetensors"))
    kind, trunk_kind = type(whole).__name__, type(network)
    code = "\n\n".join(
        inspect.getsource(part) for part in (width_of, trunk_kind) if part is not width_of or trunk_kind is Encoder
    )
    heads = added(network)
    code = "\n\n\n".join(
        part.rstrip() for part in (code.replace("def width_of(trunk: Encoder,", "def width_of(trunk,"), *sources(heads))
    )
    body = [
        f"network = {trunk_kind.__name__}({kind}.from_pretrained(FOLDER), {len(classes)})",
        *heads.lines,
        'network.load_state_dict(load_file(FOLDER / "head.safetensors"), strict=False)',
        *heads.connections,
        "return network",
    ]
    return (
        f"from typing import Any\n\nfrom diffusers import {kind}\nfrom safetensors.torch import load_file\nfrom torch import nn\n"
        f"from torchvision.transforms import InterpolationMode, v2\n\n\n{code}\n\n\ndef build():\n"
        + "".join(f"    {line}\n" for line in body)
    )
