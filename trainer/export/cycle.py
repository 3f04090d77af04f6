"""Writes the export of two networks that make pictures of each other's: each with a program that needs no graft, and a card."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from trainer.config import Run
from trainer.config.model import Model
from trainer.config.tasks.cycle import Config
from trainer.export.card import FIGURES, begun, cell, licence, measured, source_of, training
from trainer.export.place import graft_version, new_folder, take_samples
from trainer.export.translator import write
from trainer.models.both import Both
from trainer.models.run import Source, root
from trainer.restored import Restored
from trainer.spec import InputSpec


def export_cycle(restored: Restored, out: Path, summary: dict[str, Any], evaluation: dict[str, Any]) -> Path:
    """Write `out` (forth/ and back/ with model.safetensors, config.json and translate.py; README.md, samples.png) and return it.

    `restored`: the networks on the CPU in eval mode. Before the folder takes its name, each network is built again from its
    program's own lines and must make the same pictures to 1e-5 of their size. An export that was there is replaced only then.
    Raises UserError when `out` is something else, or when a network cannot be described.
    """
    run, both = restored.run, restored.network
    assert isinstance(run.task, Config)
    assert isinstance(both, Both)
    with new_folder(out, ours=(out / "forth" / "model.safetensors").is_file()) as new:
        code = ""
        for name, model in zip(("forth", "back"), _models(run), strict=True):
            (new / name).mkdir()
            spec = way(restored, back=name == "back")
            adapt = model.adapt.model_copy(update={"in_channels": spec.in_channels})
            own = run.model_copy(update={"model": model.model_copy(update={"adapt": adapt})})
            code = write(new / name, own, getattr(both, name), spec, _settings(restored, model, spec, back=name == "back"))
        shown = take_samples(restored.folder, restored.step, new)
        manifest = restored.folder.read_json(restored.folder.manifest)
        text = _card(restored, manifest, summary, evaluation, code, shown=shown)
        (new / "README.md").write_text(text, encoding="utf-8")
    return out


def way(restored: Restored, *, back: bool) -> InputSpec:
    """What the network of a way takes."""
    run, spec = restored.run, restored.spec
    assert isinstance(run.task, Config)
    channels = run.task.channels if back else spec.in_channels
    half = (0.5,) * channels
    return InputSpec(channels, spec.image_size, half, half, spec.interpolation)


def _models(run: Run) -> tuple[Model, Model]:
    """The settings of both networks as they were first built, however many runs stand in between."""
    while run.model.source.startswith("run:"):
        source = Source(run.model.source.partition(":")[2], run.model).run
        if not isinstance(source.task, Config):
            break
        run = source
    assert isinstance(run.task, Config)
    return root(run.model), root(run.task.back or run.model)


def _names(restored: Restored) -> tuple[str, str]:
    first, second = restored.facts.targets[0].target.labels
    return first, second


def _settings(restored: Restored, model: Model, spec: InputSpec, *, back: bool) -> dict[str, Any]:
    """All that is needed to load the weights and to prepare a picture for them."""
    run, names = restored.run, _names(restored)
    given, made = reversed(names) if back else names
    assert isinstance(run.task, Config)
    return {
        "graft": graft_version(), "name": run.name, "source": model.source, "args": dict(model.args), "task": "cycle",
        "from": given, "to": made, "in_channels": spec.in_channels,
        "channels": restored.spec.in_channels if back else run.task.channels, "image_size": spec.image_size,
        "pixels": "x / 127.5 - 1; what comes out is from -1 to 1 too",
    }  # fmt: skip


def _card(
    restored: Restored, manifest: dict[str, Any], summary: dict[str, Any], evaluation: dict[str, Any], code: str, *, shown: bool
) -> str:
    """README.md of an export; what the run did not measure is said to be missing."""
    run, spec = restored.run, restored.spec
    first, second = (cell(name) for name in _names(restored))
    assert isinstance(run.task, Config)
    unlike = " How like that class the pictures are was not measured by these figures." * (run.task.fidelity is None)
    ways = evaluation.get("ways") or {}
    each = "".join(
        f"From {cell(name)} and back, over {found['samples']:,} pictures: PSNR {found['cycle_psnr']:.4g}.\n\n"
        for name, found in ways.items()
    )
    return "\n".join([
        "---\nlicense: unknown\nlibrary_name: pytorch\npipeline_tag: image-to-image\n---\n",
        f"# {cell(run.name)}\n",
        f"Two networks that make pictures of each other's, learnt without pairs: `{source_of(run)}`, {begun(run)}. Strategy: "
        f"{run.strategy.kind}.\n\n`forth/` makes {second} of {first}, `back/` {first} of {second}, in {spec.image_size} x "
        f"{spec.image_size} pixels.\n",
        *(["![input, output, back](samples.png)\n\nValidation pictures: input, output, and what is made of that again.\n"]
          if shown else []),
        "## How to use it\n\nWith torch, torchvision, pillow and safetensors"
        + (", and diffusers" if "from diffusers" in code else "")
        + ", without graft: `python forth/translate.py FOLDER PICTURE …`, or `back/translate.py`.\n",
        measured(summary, evaluation), each,
        training(run, manifest, summary),
        "## Limits\n\n- No pair said what is right: a picture that looks like the other class and leads back to the input was "
        f"all that was asked for.{unlike}\n{FIGURES}\n{licence(run)}",
    ])  # fmt: skip
