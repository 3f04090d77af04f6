"""A trained generator as a pipeline of diffusers, in a folder that diffusers loads without graft."""

from __future__ import annotations

import copy
import importlib
import json
import shutil
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import nn

from trainer import sheet
from trainer.config import UserError
from trainer.export import texted
from trainer.gallery import picture
from trainer.models.class_tables import class_tables
from trainer.tasks.base import Makes
from trainer.tasks.diffusion import Diffusion
from trainer.tasks.process import FLOW
from trainer.tasks.sampler import Plan, scheduler

OWN = {"ClassPipeline": "own_pipeline.py", "TranslationPipeline": "own_translation.py"}  # the files of their code
CHECKED = 5  # passes through the network, of a check
SHOWN, COLUMNS = 24, 8
_CLASSES = 1000  # rows of a DiT's table that diffusers' pipeline for it counts on, before the one for no class
_FLOWS = (FLOW, "FlowMatchHeunDiscreteScheduler")
_PLAIN = {"DDIMScheduler": "DDIMPipeline", "DDPMScheduler": "DDPMPipeline", FLOW: "DDPMPipeline"}


@dataclass(frozen=True)
class Form:
    """Which pipeline it is: a class of diffusers, or graft's `own`; `code`: how it is loaded and called, for the card; `load`:
    what loading has to be told besides, `part`: what it calls the network."""

    name: str
    own: bool
    code: str
    load: Mapping[str, Any] = field(default_factory=dict)
    part: str = "unet"


def form_of(network: Any, task: Diffusion, plan: Plan, vae: Any) -> Form:
    """The pipeline that makes the same images: one of diffusers' own where there is one for it."""
    kind, wanted, shown = type(network).__name__, task.generator, task.word(task.shown()[0])
    if wanted.source:
        given, load = 'Image.open("picture.png"), ', ", trust_remote_code=True"
        return Form("TranslationPipeline", True, "from PIL import Image\n" + _code("DiffusionPipeline", plan, given, load))
    latents, classes = vae is not None, () if wanted.text else wanted.classes
    shifted = latents and bool(getattr(vae.config, "shift_factor", None))  # which the older pipelines do not look at
    made = type(scheduler(plan.settings, plan.sampler)).__name__
    if kind == "UNet2DModel" and not classes and not latents and made in _PLAIN:
        return Form(_PLAIN[made], False, _code(_PLAIN[made], plan))
    if kind == "DiTTransformer2DModel" and latents and not shifted and made == "DDIMScheduler" and len(classes) <= _CLASSES:
        return Form("DiTPipeline", False, _code("DiTPipeline", plan, f"class_labels=[0], guidance_scale={plan.guidance:g}, "))
    if wanted.text:
        told = texted.asked(network, task, shown, plan.guidance)
        given = "".join(f"{name}={value!r}, " for name, value in told.items())
        beside = task.beside
        olds = type(vae).__name__ == "AutoencoderKL" and not shifted and plan.settings["_class_name"] not in _FLOWS
        if beside.flow is not None or beside.betas or olds:
            found = texted.texted(network, task)
            load = "".join(f", {name}={value!r}" for name, value in found.load.items())
            return Form(found.name, False, _code(found.name, plan, given, load), found.load, found.part)
        return Form("ClassPipeline", True, _code("DiffusionPipeline", plan, given, ", trust_remote_code=True"))
    given = f"class_labels=[{shown!r}], guidance_scale={plan.guidance:g}, " if classes else ""
    return Form("ClassPipeline", True, _code("DiffusionPipeline", plan, given, ", trust_remote_code=True"))


def _code(name: str, plan: Plan, given: str = "", load: str = "") -> str:
    call = f"{given}generator=torch.manual_seed(0), num_inference_steps={plan.steps}"
    return (
        f"import torch\nfrom diffusers import {name}\n\n"
        f'pipe = {name}.from_pretrained("FOLDER"{load})\n'
        f'pipe({call}).images[0].save("image.png")\n'
    )


def write(network: Any, task: Diffusion, new: Path, reading: dict[str, Any] | None = None) -> tuple[Form, dict[str, Any]]:
    """Write the pipeline into a folder; returns what it is, and what graft must know to go on with it.

    `reading`: how pictures are read that pictures are made of.
    """
    import diffusers

    plan, wanted = task.plan(), task.generator
    vae = None if task.beside.vae is None else task.beside.vae.network
    form = form_of(network, task, plan, vae)
    made = scheduler(plan.settings, plan.sampler)
    classes = () if wanted.text else wanted.classes
    told: dict[str, Any] = {"classes": list(classes), "dropped": wanted.dropped, "source": wanted.source}
    labels = {str(index): name.replace(",", " ") for index, name in enumerate(classes)}
    words = {} if task.beside.text is None else task.beside.text.parts
    whole: Any
    if wanted.source:
        from trainer.export.own_translation import TranslationPipeline

        channels, size = task.beside.image
        whole = TranslationPipeline(network, made, vae, **words, channels=channels, size=size, **(reading or {}))
    elif form.own:
        from trainer.export.own_pipeline import ClassPipeline

        whole = ClassPipeline(network, made, vae, **words, labels=list(classes) or None, nothing=plan.nothing)
    elif wanted.text:
        whole = texted.made(network, task, made)
    elif form.name == "DiTPipeline":
        whole = diffusers.DiTPipeline(padded(network, len(wanted.classes)), vae, made, labels or None)
        told["rows"] = _CLASSES + 1
    else:
        whole = getattr(diffusers, form.name)(network, made)
    whole.save_pretrained(new)
    if form.name == "DiTPipeline" and labels:
        _say(new, id2label=labels)
    return form, told


def padded(network: Any, classes: int) -> nn.Module:
    """A DiT with as many rows in its tables as diffusers' pipeline counts on: the one for no class stands at number 1000."""
    made: Any = copy.deepcopy(network)
    for name in class_tables(made):
        table = made.get_submodule(name)
        rows = torch.zeros(_CLASSES + 1, table.embedding_dim)
        rows[:classes] = table.weight[:classes]
        rows[_CLASSES] = table.weight[-1]
        table.weight, table.num_embeddings = nn.Parameter(rows, requires_grad=False), _CLASSES + 1
        made.get_submodule(name.rpartition(".")[0]).num_classes = _CLASSES
    made.register_to_config(num_embeds_ada_norm=_CLASSES)
    found: nn.Module = made
    return found


def _say(new: Path, **settings: Any) -> None:
    """Add to what the pipeline says of itself."""
    path = new / "model_index.json"
    index = json.loads(path.read_text(encoding="utf-8")) | settings
    path.write_text(json.dumps(index, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")


def own(form: Form, new: Path) -> None:
    """Put the code of a pipeline that diffusers has not into the folder, and its name where diffusers looks for it."""
    shutil.copyfile(Path(__file__).with_name(OWN[form.name]), new / "pipeline.py")
    _say(new, _class_name=["pipeline", form.name])


def images(network: nn.Module, task: Makes, new: Path) -> None:
    """`samples.png`: images of the first seeds, of each class or text in turn."""
    shown = task.shown()
    columns = min(len(shown), COLUMNS) if task.generator.classes else COLUMNS
    numbers = [shown[place % len(shown)] for place in range(max(columns, SHOWN // columns * columns))]
    made: list[torch.Tensor] = []
    for start in range(0, len(numbers), COLUMNS):
        part = numbers[start : start + COLUMNS]
        made += task.sample(network, range(start, start + len(part)), part, task.plan(), lambda: None)
    captions = [task.word(number) for number in numbers]
    sheet.save([picture(image) for image in made], captions, columns, new / "samples.png")


def check(network: nn.Module, task: Diffusion, form: Form, new: Path) -> None:
    """Load the folder by itself and compare its images of two seeds with graft's. Raises UserError where they are others."""
    import diffusers

    diffusers.utils.logging.disable_progress_bar()
    place = f"trainer.export.{OWN[form.name].removesuffix('.py')}" if form.own else "diffusers"
    pipe: Any = getattr(importlib.import_module(place), form.name).from_pretrained(new, **form.load)
    difference = compared(pipe, network, task, form)
    if not difference <= 1:
        raise UserError(f"the exported pipeline makes other images than the run (by {difference:g} of 255); nothing was written")


def compared(pipe: Any, network: nn.Module, task: Diffusion, form: Form) -> float:
    """By how much of 255 the images of two seeds are others with a pipeline than with graft, at most."""
    shown, plan = task.shown(), task.plan()
    steps, guidance = min(CHECKED, plan.steps), 2.0 if plan.nothing is not None else 1.0
    numbers = [shown[0], shown[-1]]
    few = Plan(plan.settings, plan.sampler, steps, guidance, plan.nothing)
    pipe.set_progress_bar_config(disable=True)
    given: dict[str, Any] = {"generator": [torch.Generator().manual_seed(seed) for seed in (0, 1)], "num_inference_steps": steps}
    if task.generator.source:
        channels, side = task.beside.image
        given["image"] = torch.rand(2, channels, side, side, generator=torch.Generator().manual_seed(2)) * 2 - 1
        expected = task.translate(network, given["image"], [0, 1], few)
        return _apart(pipe, given, expected)
    expected = task.sample(network, [0, 1], numbers, few)
    if task.generator.text:
        given |= texted.asked(network, task, [task.word(number) for number in numbers], guidance)
    elif task.generator.classes or form.name == "DiTPipeline":
        given |= {"class_labels": numbers, "guidance_scale": guidance}
    else:
        given["batch_size"] = 2
    return _apart(pipe, given, expected)


def _apart(pipe: Any, given: dict[str, Any], expected: torch.Tensor) -> float:
    found = torch.as_tensor(pipe(**given, output_type="np").images).permute(0, 3, 1, 2).mul(255).round()
    return float((found - expected.float()).abs().max())
