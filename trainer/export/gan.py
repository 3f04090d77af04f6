"""Writes the export of a gan: both networks, a program that makes images without graft, a card."""

from __future__ import annotations

import inspect
import json
import shutil
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file, save_model
from torch import nn

from trainer.checkpoint import Store
from trainer.config import Run, UserError
from trainer.export.card import FIGURES, cell, licence, measured, training
from trainer.export.folder import TOLERANCE, copy_factory
from trainer.export.generator_card import what
from trainer.export.heads import line
from trainer.export.pipeline import images
from trainer.export.place import graft_version, new_folder
from trainer.export.snippet import construction, make
from trainer.models.class_tables import class_tables
from trainer.models.gan import FILES, without_weights
from trainer.models.resnet_gan import GROUPS, MOST, ResnetGenerator, ToldNorm, Up, begun
from trainer.restored import Restored
from trainer.tasks.duel import SHARE
from trainer.tasks.gan import Gan


def export_gan(restored: Restored, out: Path, summary: dict[str, Any], evaluation: dict[str, Any]) -> Path:
    """Write `out` (generator.safetensors, critic.safetensors, config.json, sample.py, README.md, samples.png) and return it.

    `restored`: the generator on the CPU in eval mode. Before the folder takes its name, it is built again from the program's own
    lines and must make the same images to 1e-5 of their size. An export that was there is replaced only then. Raises UserError
    when `out` is something else.
    """
    run, network, task = restored.run, restored.network, restored.task
    assert isinstance(task, Gan)
    generator, critic = FILES
    with new_folder(out, ours=(out / generator).is_file()) as new:
        step = Store(restored.folder.checkpoints, keep=run.checkpoint.keep).named(str(restored.step))
        first = run.model_copy(update={"model": without_weights(run.model, step.state)})
        file, source, args = copy_factory(first, new), first.model.source, dict(first.model.args)
        if file is not None:
            source = f"python:{file}:{source.rpartition(':')[2]}"
        build = _build(network, first, file, restored, new)
        settings = {
            "graft": graft_version(), "task": "gan", "name": run.name, "step": restored.step, "source": source, "args": args,
            "classes": list(task.generator.classes), "in_channels": restored.spec.in_channels,
            "image_size": restored.spec.image_size, "latent": network.latent, "truncation": task.plan().truncation,
            "pixels": "from -1 to 1",
        }  # fmt: skip
        save_model(network, str(new / generator))
        tensors = load_file(step.path / "critic.safetensors")
        save_file({name: value for name, value in tensors.items() if name != SHARE}, new / critic)
        (new / "config.json").write_text(json.dumps(settings, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")
        code = PROGRAM.format(build=build.rstrip("\n"), file=generator)
        (new / "sample.py").write_text(code, encoding="utf-8")
        images(network, task, new)
        manifest = restored.folder.read_json(restored.folder.manifest)
        (new / "README.md").write_text(_card(restored, task, manifest, summary, evaluation, code), encoding="utf-8")
        _check(build, network, new, classes=len(task.generator.classes))  # last: of the folder as it is going to be
        shutil.rmtree(new / "__pycache__", ignore_errors=True)  # of the factory's file, which the check has just imported
    return out


def _build(network: nn.Module, run: Run, file: str | None, restored: Restored, new: Path) -> str:
    """Source of `build()`; `run` has the source that the networks are made of, `file` is its file in the export."""
    task = restored.task
    assert isinstance(task, Gan)
    imports, parts = ["import math", "from torch.nn import functional"], []
    if isinstance(network, ResnetGenerator):
        known = inspect.signature(ResnetGenerator.__init__).parameters
        given = "".join(f", {key}={value!r}" for key, value in run.model.args.items() if key in known)
        own: tuple[Any, ...] = (begun, ToldNorm, Up, ResnetGenerator)
        parts = [f"GROUPS, MOST = {GROUPS}, {MOST}", *map(inspect.getsource, own)]
        classes = len(task.generator.classes)
        body = [f"network = ResnetGenerator({restored.spec.in_channels}, {restored.spec.image_size}, {classes}{given})"]
    else:
        imports, _, body = construction(run, network, restored.spec, 0, file, new)
        body[-1] = body[-1].replace("network = ", "network, _ = ", 1)  # the factory gives the critic as well
        for table in class_tables(network) if task.generator.classes else ():
            rows: Any = network.get_submodule(table)
            body.append(line(table, f"nn.Embedding({rows.num_embeddings}, {rows.embedding_dim})"))
    head = ["import torch", "from torch import nn", *imports]
    texts = [text for part in parts for text in ("", "", part.rstrip())]
    return "\n".join([*head, *texts, "", "", "def build():", *(f"    {text}" for text in [*body, "return network"]), ""])


def _check(build: str, network: nn.Module, new: Path, *, classes: int) -> None:
    """Build it again, read the file and compare. Raises UserError where the images are others."""
    again = make(build, new)
    again.load_state_dict(load_file(new / FILES[0]))
    latent: Any = network.latent
    latents = torch.randn(2, latent, generator=torch.Generator().manual_seed(0))
    told = (torch.arange(2) % classes,) if classes else ()
    with torch.inference_mode():
        expected, found = network(latents, *told), again.eval()(latents, *told)
    difference = float((expected - found).abs().max())
    if not difference <= TOLERANCE * max(1.0, float(expected.abs().max())):
        raise UserError(f"the exported network makes other images than the trained one (by {difference:g}); nothing was written")


def _card(
    restored: Restored, task: Gan, manifest: dict[str, Any], summary: dict[str, Any], evaluation: dict[str, Any], code: str
) -> str:  # fmt: skip
    """README.md of an export."""
    run = restored.run
    most = task.plan().truncation
    shown = [task.word(number) for number in task.shown()[:8]]
    columns = f" Columns: {', '.join(map(cell, shown))}." if any(shown) else ""
    truncation = "of any latents" if most is None else f"of latents no further from 0 than {most:g}"
    return "\n".join([
        "---\nlicense: unknown\nlibrary_name: pytorch\npipeline_tag: unconditional-image-generation\n---\n",
        f"# {cell(run.name)}\n",
        what(restored),
        f"## What it makes\n\n![images of fixed seeds](samples.png)\n\nThe first seeds, {truncation}; none was chosen by hand."
        f"{columns}\n",
        "## How to use it\n\nWith torch, pillow and safetensors, without graft: `python sample.py OUT SEED …` in this folder; "
        "`critic.safetensors` is the network that it learnt against, for whoever goes on (`model.source: gan:FOLDER`, or of "
        f"networks of one's own `python:FILE.py:factory` with `weights: FOLDER`). That file is:\n\n```python\n{code}```\n",
        measured(summary, evaluation),
        training(run, manifest, summary),
        "## Limits\n\n- It makes pictures like those that it learnt from, fewer kinds of them than there are, and may repeat "
        f"some; that was not measured beyond the figures above.\n{FIGURES}\n{licence(run)}",
    ])  # fmt: skip


PROGRAM = '''"""Makes images: python sample.py OUT SEED …; one of each class for each seed is written into OUT.

Needs torch, pillow and safetensors.
"""

import json
import sys
from pathlib import Path

from PIL import Image
from safetensors.torch import load_file
{build}


FOLDER = Path(__file__).resolve().parent  # of {file}
ABOUT = json.loads((FOLDER / "config.json").read_text(encoding="utf-8"))


def load():
    network = build()
    network.load_state_dict(load_file(FOLDER / "{file}"))
    return network.eval()


def latents(seed):
    drawn = torch.randn(ABOUT["latent"], generator=torch.Generator().manual_seed(seed))[None]
    most = ABOUT["truncation"]
    if most is None:
        return drawn
    inside = torch.special.ndtr(torch.tensor(most).double())
    places = torch.special.ndtr(drawn.double()) * (2 * inside - 1) + (1 - inside)
    return torch.special.ndtri(places).clamp(-most, most).float()


def main():
    network = load()
    out = Path(sys.argv[1])
    out.mkdir(parents=True, exist_ok=True)
    for seed in map(int, sys.argv[2:]):
        for number, name in enumerate(ABOUT["classes"] or [""]):
            safe = "".join(letter if letter.isalnum() or letter in "._-" else "_" for letter in name)[:60]
            place = out / (f"{{safe}}-{{seed:06d}}.png" if safe else f"{{seed:06d}}.png")
            if place.exists():
                sys.exit(f"{{place}} is there already")
            with torch.inference_mode():
                made = network(latents(seed), *([torch.tensor([number])] if name else []))[0]
            pixels = (made / 2 + 0.5).clamp(0, 1).mul(255).round().to(torch.uint8)
            image = pixels[0] if len(pixels) < 3 else pixels[:3].permute(1, 2, 0)
            Image.fromarray(image.contiguous().numpy()).save(place)
            print(place)


if __name__ == "__main__":
    main()
'''
