"""Writes the export of a network that makes pictures of pictures: weights, a program that needs no graft, a card."""

from __future__ import annotations

import inspect
import json
import shutil
from pathlib import Path
from typing import Any

from safetensors.torch import save_model
from torch import nn

from trainer.config import Run
from trainer.config.tasks.translate import Config
from trainer.export.card import FIGURES, begun, cell, licence, measured, of_inputs, source_of, training
from trainer.export.folder import check, copy_factory
from trainer.export.heads import line
from trainer.export.place import graft_version, new_folder, take_samples
from trainer.export.snippet import changed, construction, make, reading, replacement
from trainer.models.both import Normalising
from trainer.models.decoder import Decoder, Residual, Translating, Untimed, stage
from trainer.models.run import root
from trainer.restored import Restored
from trainer.spec import InputSpec

UNET = "unet.json"


def export_translator(restored: Restored, out: Path, summary: dict[str, Any], evaluation: dict[str, Any]) -> Path:
    """Write `out` (model.safetensors, config.json, translate.py, README.md, samples.png) and return it.

    `restored`: the network on the CPU in eval mode. Before the folder takes its name, the network is built again from the
    program's own lines and must make the same pictures to 1e-5 of their size. An export that was there is replaced only then.
    Raises UserError when `out` is something else, or when the network cannot be described.
    """
    run, network, spec = restored.run, restored.network, restored.spec
    assert isinstance(run.task, Config)
    ours = (out / "model.safetensors").is_file()
    with new_folder(out, ours=ours) as new:
        first = run.model_copy(update={"model": root(run.model)})
        code = write(new, first, network, spec, _settings(run, spec), grey=run.task.pairs.kind == "grey")
        shown = take_samples(restored.folder, restored.step, new)
        manifest = restored.folder.read_json(restored.folder.manifest)
        text = _card(restored, manifest, summary, evaluation, code, shown=shown)
        (new / "README.md").write_text(text, encoding="utf-8")
    return out


def write(new: Path, run: Run, network: nn.Module, spec: InputSpec, settings: dict[str, Any], *, grey: bool = False) -> str:
    """Write model.safetensors, config.json and translate.py into `new`, and return the program; `grey`: it sees no colours.

    `run` has the network's own source. Raises UserError when the network cannot be described.
    """
    build = _build(run, network, spec, new)
    told = {key: value if isinstance(value, str) else json.dumps(value) for key, value in settings.items()}
    save_model(network, str(new / "model.safetensors"), told)
    (new / "config.json").write_text(json.dumps(settings, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")
    code = PROGRAM.format(build=build.rstrip("\n"), mean=list(spec.mean), std=list(spec.std), read=reading(run, spec, grey=grey))
    (new / "translate.py").write_text(code, encoding="utf-8")
    check(build, new, network, spec, loaded=False)  # last: of the folder as it is going to be
    shutil.rmtree(new / "__pycache__", ignore_errors=True)  # of the factory's file, which the check has just imported
    return code


def _build(run: Run, network: nn.Module, spec: InputSpec, new: Path) -> str:
    """Source of `build()`. Raises UserError for a network that cannot be written down."""
    imports, before, body, own = _lines(run, network, spec, new)
    return _code(imports, before, body, own)


def _lines(
    run: Run, network: nn.Module, spec: InputSpec, new: Path
) -> tuple[list[str], list[str], list[str], tuple[Any, ...]]:  # fmt: skip
    """The imports, the definitions and the lines of `build()`, and the classes and functions of graft's own that it needs."""
    if isinstance(network, Residual | Normalising):
        imports, before, body, own = _lines(run, network.network, spec, new)
        values = ", ".join(str([round(value, 6) for value in of.flatten().tolist()]) for of in (network.mean, network.std))
        channels = f"{network.channels}, " if isinstance(network, Residual) else ""
        around = f"network = {type(network).__name__}(network, {channels}{values})"  # the weights have the exact values
        return imports, before, [*body, around], (*own, type(network))
    if isinstance(network, Untimed):
        inner: Any = network.network
        (new / UNET).write_text(inner.to_json_string(), encoding="utf-8")
        imports = ["import json", f"from diffusers import {type(inner).__name__}"]
        body = [
            f'settings = json.loads((FOLDER / "{UNET}").read_text(encoding="utf-8"))',
            f"network = Untimed({type(inner).__name__}.from_config(settings), {network.channels})",
        ]
        return imports, [], body, (Untimed,)
    file = copy_factory(run, new)
    if not isinstance(network, Translating):
        imports, before, body = construction(run, network, spec, 2, file, new)
        return imports, before, body, ()
    trunk, decoder = network.trunk, network.decoder
    assert isinstance(decoder, Decoder)
    imports, before, body = construction(run, trunk, spec, 2, file, new)
    plain = make(_code(imports, before, body, ()), new)
    theirs = dict(plain.named_modules())
    gone = [name for name, module in trunk.named_modules() if isinstance(module, nn.Identity) and name in theirs]
    gone = [name for name in gone if not isinstance(theirs[name], nn.Identity)]
    body = [*body, *(line(name, "nn.Identity()") for name in gone)]
    reference = make(_code(imports, before, body, ()), new)
    body += [replacement(name, trunk, reference) for name in changed(trunk, reference, ())]
    arguments = ", ".join(f"{key}={value!r}" for key, value in decoder.arguments.items())
    body.append(f"network = Translating(network, {network.levels!r}, Decoder({arguments}))")
    return imports, before, body, (stage, Decoder, Translating)


def _code(imports: list[str], before: list[str], body: list[str], own: tuple[Any, ...]) -> str:
    head = ["from collections.abc import Callable, Sequence", "from torch import nn", "from torch.nn import functional", *imports]
    head.append("from torchvision.transforms import InterpolationMode, v2")
    parts = [text for part in [*before, *map(inspect.getsource, own)] for text in ("", "", part.rstrip())]
    return "\n".join([*head, *parts, "", "", "def build():", *(f"    {text}" for text in [*body, "return network"]), ""])


def _settings(run: Run, spec: InputSpec) -> dict[str, Any]:
    """All that is needed to load the weights and to prepare a picture for them."""
    assert isinstance(run.task, Config)
    return {
        "graft": graft_version(), "name": run.name, "source": run.model.source, "args": dict(run.model.args), "task": "translate",
        "pairs": run.task.pairs.model_dump(mode="json"), "in_channels": spec.in_channels, "channels": run.task.channels,
        "image_size": spec.image_size, "mean": list(spec.mean), "std": list(spec.std),
        "pixels": "x / 255, then (x - mean) / std; what comes out is from -1 to 1",
    }  # fmt: skip


def _card(
    restored: Restored, manifest: dict[str, Any], summary: dict[str, Any], evaluation: dict[str, Any], code: str, *, shown: bool
) -> str:
    """README.md of an export; what the run did not measure is said to be missing."""
    run, spec = restored.run, restored.spec
    assert isinstance(run.task, Config)
    return "\n".join([
        "---\nlicense: unknown\nlibrary_name: pytorch\npipeline_tag: image-to-image\n---\n",
        f"# {cell(run.name)}\n",
        f"A network that makes pictures of pictures: `{source_of(run)}`, {begun(run)}. Strategy: {run.strategy.kind}.\n\n"
        f"It takes pictures of {spec.image_size} x {spec.image_size} pixels in {spec.in_channels} channels and makes as large "
        f"ones in {run.task.channels}. How the inputs of its training came: {run.task.pairs.kind}.\n",
        *(["![input, output, target](samples.png)\n\nValidation pairs: input, output, target.\n"] if shown else []),
        "## How to use it\n\nWith torch, torchvision, pillow and safetensors"
        + (", and diffusers" if "from diffusers" in code else "")
        + f", without graft: `python translate.py FOLDER PICTURE …` in this folder. That file is:\n\n```python\n{code}```\n",
        measured(summary, evaluation), of_inputs(evaluation),
        training(run, manifest, summary),
        "## Limits\n\n- It makes up what the input does not show: colours and details are likely ones, not true ones.\n"
        f"{FIGURES}\n{licence(run)}",
    ])  # fmt: skip


PROGRAM = '''"""Makes pictures of pictures: python translate.py FOLDER PICTURE …; what is made of each is written into FOLDER.

Needs torch, torchvision, pillow and safetensors.
"""

import sys
from pathlib import Path

import torch
from PIL import Image, ImageOps
from safetensors.torch import load_file
{build}


FOLDER = Path(__file__).resolve().parent  # of model.safetensors
MEAN, STD = {mean}, {std}


def load():
    network = build()
    tensors = network.state_dict()
    tensors.update(load_file(FOLDER / "model.safetensors"))
    network.load_state_dict(tensors)
    return network.eval()


{read}

def main():
    network, failed = load(), 0
    out = Path(sys.argv[1])
    out.mkdir(parents=True, exist_ok=True)
    for path in sys.argv[2:]:
        place = out / (Path(path).stem + ".png")
        try:
            picture = read(path)
        except (OSError, ValueError) as error:
            print(f"{{path}}: {{error}}", file=sys.stderr)
            failed = 1
            continue
        if place.exists():
            print(f"{{place}} is there already", file=sys.stderr)
            failed = 1
            continue
        with torch.inference_mode():
            made = network(picture)[0]
        pixels = (made / 2 + 0.5).clamp(0, 1).mul(255).round().to(torch.uint8)
        v2.functional.to_pil_image(pixels).save(place)
        print(place)
    return failed


if __name__ == "__main__":
    sys.exit(main())
'''
