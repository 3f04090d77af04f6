"""Writes the export of a generator: a pipeline of diffusers, a model card with what it makes, and what graft must know."""

from __future__ import annotations

import json
import logging
from pathlib import Path
from typing import Any

from trainer.config import UserError
from trainer.data.pairs import way_of
from trainer.export import adapters, pipeline
from trainer.export.generator_card import card
from trainer.export.place import graft_version, new_folder, take_samples
from trainer.restored import Restored, warn_of_changes
from trainer.tasks.diffusion import Diffusion

log = logging.getLogger("graft")


def export_generator(restored: Restored, out: Path, summary: dict[str, Any], evaluation: dict[str, Any]) -> Path:
    """Write `out`, a pipeline of diffusers with README.md, samples.png and graft.json, and return it.

    `restored`: the network on the CPU in eval mode. Before the folder takes its name, the pipeline is loaded by itself and must
    make the same images, to a step of 255. An export that was there is replaced only then. Raises UserError when `out` is
    something else, or the network is none of diffusers'.
    """
    network, task = restored.network, restored.task
    if not hasattr(network, "save_pretrained") or not isinstance(task, Diffusion):
        command = "sample" if way_of(restored.run) is None else "translate"
        raise UserError(
            f"{restored.run.model.source}: is no network of diffusers, so that no pipeline of theirs holds it; use it by "
            f"`graft {command}`, or read its weights (safetensors) from {restored.folder.checkpoints}"
        )
    warn_of_changes(restored)
    ours = (out / "model_index.json").is_file() and (out / "graft.json").is_file()
    with new_folder(out, ours=ours) as new:
        form, told = pipeline.write(network, task, new, _reading(restored))
        pipeline.check(network, task, form, new)
        why = adapters.write(restored, form, new)
        if why is not None:
            log.warning("the adapters are part of the exported weights, and not a file of their own: %s", why)
        shown = True
        if task.generator.source:
            shown = take_samples(restored.folder, restored.step, new)
        else:
            pipeline.images(network, task, new)
        if form.own:
            pipeline.own(form, new)
        about = {"graft": graft_version(), "name": restored.run.name, "step": restored.step, **told}
        (new / "graft.json").write_text(json.dumps(about, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")
        manifest = restored.folder.read_json(restored.folder.manifest)
        code = form.code if not (new / adapters.FILE).is_file() else f"{form.code}\n{_over(restored, form)}"
        text = card(restored, code, manifest, summary, evaluation, shown=shown)
        (new / "README.md").write_text(text, encoding="utf-8")
    return out


def _reading(restored: Restored) -> dict[str, Any]:
    """How pictures are read that pictures are made of; nothing of a run that makes them of noise alone."""
    way, data, spec = way_of(restored.run), restored.run.data, restored.spec
    if way is None:
        return {}
    return {
        "grey": way.kind == "grey", "resize_to": data.resize_to or spec.image_size, "squash": data.resize == "squash",
        "interpolation": spec.interpolation if data.interpolation == "auto" else data.interpolation,
    }  # fmt: skip


def _over(restored: Restored, form: pipeline.Form) -> str:
    """How the adapters alone are loaded, for the card."""
    place = restored.run.model.source.removeprefix("diffusers:").partition("#")[0]
    load = "".join(f", {name}={value!r}" for name, value in form.load.items())
    return (
        f"# or what was learnt alone, over the weights that it was learnt from\n"
        f'pipe = {form.name}.from_pretrained("{Path(place).name}"{load})\n'
        f'pipe.load_lora_weights("FOLDER", weight_name="{adapters.FILE}")\n'
    )
