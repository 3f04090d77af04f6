"""The program that uses an export without graft: written line by line from the network as it is."""

from __future__ import annotations

import keyword
from pathlib import Path
from typing import Any

import torch
from torch import nn

from trainer.config import Run, UserError
from trainer.export.heads import added, line, plain_layer, sources
from trainer.export.plain import PLAIN
from trainer.export.words import Words
from trainer.spec import InputSpec

_MODES = {1: "L", 2: "LA", 3: "RGB", 4: "RGBA"}
_INTERPOLATION = {"nearest": "NEAREST_EXACT", "bilinear": "BILINEAR", "bicubic": "BICUBIC"}


def build_code(run: Run, network: nn.Module, spec: InputSpec, classes: int, file: str | None, folder: Path) -> str:
    """Source of `build()`, which makes the network with random weights. `file`: a factory's own file in `folder`, the export.

    The plain architecture is made once here, and every module whose parameters have another shape in `network` becomes a line
    that replaces it; so do heads of graft's own, whose classes are written out. Raises UserError when the network cannot be
    written down like this.
    """
    imports, before, construct = construction(run, network, spec, classes, file, folder)
    reference = make(_code(imports, before, construct), folder)
    heads = added(network)
    lines = [*heads.lines, *(replacement(name, network, reference) for name in changed(network, reference, heads.names))]
    imports = [*imports, *(["from typing import Any"] if heads.classes else [])]
    return _code(imports, [*before, *sources(heads)], [*construct, *lines, *heads.connections])


def make(code: str, folder: Path) -> nn.Module:
    """Run the source of `build()`, as the program will; `folder` stands for the folder of the export."""
    space: dict[str, Any] = {"FOLDER": folder, "torch": torch, "__name__": "predict"}
    with torch.random.fork_rng(devices=[]):
        exec(compile(code, "<export>", "exec"), space)
        network = space["build"]()
    if not isinstance(network, nn.Module):
        raise UserError(f"the factory returned a {type(network).__name__}, not a torch.nn.Module")
    return network


def _code(imports: list[str], before: list[str], body: list[str]) -> str:
    """`before`: classes and functions that `build()` needs."""
    imports = ["from torch import nn", *imports, "from torchvision.transforms import InterpolationMode, v2"]
    defined = [line for part in before for line in ("", "", part.rstrip())]
    return "\n".join([*imports, *defined, "", "", "def build():", *(f"    {line}" for line in [*body, "return network"]), ""])


def construction(
    run: Run, network: nn.Module, spec: InputSpec, classes: int, file: str | None, folder: Path
) -> tuple[list[str], list[str], list[str]]:
    """The imports, the definitions and the lines that make the plain architecture."""
    scheme, _, rest = run.model.source.partition(":")
    if scheme in PLAIN:
        return PLAIN[scheme](run, spec, classes, folder)
    args = ", ".join(f"{key}={value!r}" for key, value in run.model.args.items())
    if scheme == "torchvision":
        given: dict[str, Any] = {**run.model.args, **_own_arguments(network, rest, spec)}
        text = "".join(f", {key}={value!r}" for key, value in given.items())
        line = f"network = models.get_model({rest!r}, weights=None, num_classes={classes}{text})"
        return ["from torchvision import models"], [], [line]
    place, _, factory = rest.rpartition(":")
    if scheme != "python" or not place or not factory.isidentifier():
        raise UserError(f"model.source '{run.model.source}' cannot be exported; known: torchvision:NAME, python:PLACE:FACTORY")
    if place.endswith(".py") or "/" in place:
        where = f"FOLDER / {file!r}" if file else repr(place)
        load = [
            f'spec = importlib.util.spec_from_file_location("network_file", {where})',
            "module = importlib.util.module_from_spec(spec)",
            f"sys.path.append(str(Path({where}).parent))",
            "sys.modules[spec.name] = module",
            "spec.loader.exec_module(module)",
            f"network = module.{factory}({args})",
        ]
        return ["import importlib.util", "import sys", "from pathlib import Path"], [], load
    if not all(part.isidentifier() and not keyword.iskeyword(part) for part in place.split(".")):
        raise UserError(f"model.source '{run.model.source}': '{place}' is not the name of a module")
    return [f"from {place} import {factory}"], [], [f"network = {factory}({args})"]


def _own_arguments(network: nn.Module, name: str, spec: InputSpec) -> dict[str, Any]:
    """What torchvision's builder must be told beside the classes, read off the network."""
    from torchvision import models

    family = models.get_model_builder(name).__module__.rpartition(".")[2]
    if family == "vision_transformer":
        return {"image_size": spec.image_size}
    if family == "maxvit":
        return {"input_size": (spec.image_size, spec.image_size)}
    if family in ("googlenet", "inception"):  # their own initialisation takes seconds and is overwritten
        return {"aux_logits": bool(network.aux_logits), "init_weights": False}
    return {}


def _shapes(module: nn.Module) -> dict[str, torch.Size]:
    return {name: value.shape for name, value in module.state_dict().items() if isinstance(value, torch.Tensor)}


def changed(network: nn.Module, reference: nn.Module, written: tuple[str, ...]) -> list[str]:
    """Names of the modules that hold tensors of another shape than in the reference; without those that are `written` already."""
    inside = tuple(f"{name}." for name in written)
    here, there = (
        {name: shape for name, shape in _shapes(module).items() if not name.startswith(inside or "\0")}
        for module in (network, reference)
    )
    different = sorted(set(here) ^ set(there))
    differing = [name for name in here if name in there and here[name] != there[name]]
    changed = dict.fromkeys(name.rpartition(".")[0] for name in [*differing, *different])
    unknown = [name for name in changed if not isinstance(_module(network, name), nn.Linear | nn.Conv2d)]
    if unknown:
        raise UserError(f"the network differs from its architecture in '{unknown[0]}', which an export cannot describe")
    return list(changed)


def _module(network: nn.Module, name: str) -> nn.Module | None:
    try:
        return network.get_submodule(name)
    except AttributeError:
        return None


def replacement(name: str, network: nn.Module, reference: nn.Module) -> str:
    """The line that puts an adapted layer in the place of the architecture's own."""
    layer = network.get_submodule(name)
    if _module(reference, name) is None:
        raise UserError(f"the network has a module '{name}' that its architecture lacks; an export cannot describe it")
    return line(name, plain_layer(layer))


PROGRAM = '''"""Gives a picture {about}: python predict.py PICTURE …

Needs torch, torchvision, pillow and safetensors.
"""

import sys
from pathlib import Path

import torch
from PIL import Image, ImageOps
from safetensors.torch import load_file
{build}


FOLDER = Path(__file__).resolve().parent  # of model.safetensors
{constants}
MEAN, STD = {mean}, {std}


def load():
{fill}

{read}

{tell}

def main():
    network, failed = load(), 0
    for path in sys.argv[1:]:
        try:
            picture = read(path)
        except (OSError, ValueError) as error:
            print(f"{{path}}: {{error}}", file=sys.stderr)
            failed = 1
            continue
        with torch.inference_mode():
            logits = network(picture)
        print(path, *tell(logits), sep="\\t")
    return failed


if __name__ == "__main__":
    sys.exit(main())
'''

_READ = '''def read(path):
    """A picture as the network takes it: float [1, {channels}, {size}, {size}]."""
    image = ImageOps.exif_transpose(Image.open(path))
    if image.mode[0] in "IF":
        raise ValueError("more than 8 bits a channel; save it in 8 bits")
{mode}    pixels = v2.functional.pil_to_tensor(image)
{resize}    pixels = v2.functional.center_crop(pixels, [{size}, {size}])
    mean, std = (torch.tensor(values).view(-1, 1, 1) for values in (MEAN, STD))
    return ((pixels / 255 - mean) / std).unsqueeze(0)
'''

_TRIM = """    height, width = pixels.shape[-2:]
    longest = 8 * min(height, width)  # of a very long picture only the middle counts
    pixels = v2.functional.center_crop(pixels, [min(height, longest), min(width, longest)])
"""

_OVER_WHITE = """    if image.mode in ("LA", "PA", "RGBA") or "transparency" in image.info:
        image = image.convert("RGBA")
        image = Image.alpha_composite(Image.new("RGBA", image.size, "white"), image)
"""


_FILL = """    network = build()
    tensors = network.state_dict()
    tensors.update(load_file(FOLDER / "model.safetensors"))
    network.load_state_dict(tensors)
    return network.eval()
"""


def program(build: str, run: Run, spec: InputSpec, words: Words, *, loaded: bool = False) -> str:
    """The whole program: build, load, the evaluation's pre-processing, what is said of each picture.

    `loaded`: `build()` reads the weights itself, as the library of the network does.
    """
    return PROGRAM.format(
        about=words.about, build=build.rstrip("\n"), constants=words.constants, tell=words.tell, mean=list(spec.mean),
        std=list(spec.std), read=reading(run, spec),
        fill="    return build().eval()\n" if loaded else _FILL,
    )  # fmt: skip


def reading(run: Run, spec: InputSpec, *, grey: bool = False) -> str:
    """Source of `read(path)`, the evaluation's pre-processing; `grey`: whatever the channels, without colours."""
    data, size = run.data, spec.image_size
    side = data.resize_to or size
    how = _INTERPOLATION[spec.interpolation if data.interpolation == "auto" else data.interpolation]
    target = f"[{side}, {side}]" if data.resize == "squash" else f"[{side}]"
    resize = f"    pixels = v2.functional.resize(pixels, {target}, InterpolationMode.{how}, antialias=True)\n"
    if data.resize == "crop":
        resize = _TRIM + resize
    channels = _MODES.get(spec.in_channels, "RGB")
    convert = "" if spec.in_channels in (2, 4) else _OVER_WHITE
    if channels == "L":  # by way of RGB: what was laid over white is no longer grey by itself
        convert += '    if image.mode not in ("1", "L"):\n        image = image.convert("RGB")\n'
    if grey and channels != "L":
        convert += '    image = image.convert("L")\n'
    convert += f'    image = image.convert("{channels}")\n'
    return _READ.format(channels=spec.in_channels, size=size, mode=convert, resize=resize)
