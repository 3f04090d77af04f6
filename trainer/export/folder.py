"""Writes an export, checks that it gives the same answers, and commits it once."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_model
from torch import nn

from trainer.config import Run, UserError
from trainer.export.card import card
from trainer.export.library import FORMATS, has_words, write
from trainer.export.place import graft_version, new_folder
from trainer.export.snippet import build_code, make, program
from trainer.export.words import threshold, words
from trainer.models.run import root
from trainer.rundir import RunDir
from trainer.spec import InputSpec, Output, labels_of

TOLERANCE = 1e-5
PROGRAMS = ("predict", "sample", "translate")  # what exports write beside a factory's file


def export(
    folder: RunDir,
    out: Path,
    *,
    network: nn.Module,
    spec: InputSpec,
    outputs: tuple[Output, ...],
    run: Run,
    summary: dict[str, Any],
    evaluation: dict[str, Any],
) -> Path:
    """Write `out` (model.safetensors, config.json, README.md, predict.py, and the file of an own factory) and return it.

    What came from timm, transformers or diffusers goes out in that library's own format; graft's settings are then graft.json.
    With a head that timm or transformers has no words for (hidden layers, attention) it goes out as a network of one's own would:
    the program then needs the library, and puts the head in.

    `network`: on the CPU in eval mode. Before the folder takes its name, the network is built again from the program's own
    lines and must give the same logits to 1e-5 of their size. An export that was there is replaced only then.
    Raises UserError when `out` is something else, or when the network cannot be described.
    """
    ours = any((out / name).is_file() for name in ("model.safetensors", "head.safetensors"))
    with new_folder(out, ours=ours) as new:
        classes = labels_of(outputs)
        settings = _settings(run, spec, outputs)
        first = run.model_copy(update={"model": root(run.model)})
        loaded = has_words(first, network)
        if loaded:
            build = write(first, network, spec, classes, new)
        else:
            build = build_code(first, network, spec, len(classes), copy_factory(first, new), new)
            save_model(network, str(new / "model.safetensors"), {key: _text(value) for key, value in settings.items()})
        code = program(build, run, spec, words(run.task, outputs), loaded=loaded)
        text = json.dumps(settings, indent=1, ensure_ascii=False) + "\n"
        (new / ("graft.json" if loaded else "config.json")).write_text(text, encoding="utf-8")
        (new / "predict.py").write_text(code, encoding="utf-8")
        library = first.model.source.partition(":")[0]
        form = "torch" if library not in FORMATS else library if loaded else f"{library}, without a format for this head"
        text = card(run, spec, outputs, folder.read_json(folder.manifest), summary, evaluation, code, form)
        (new / "README.md").write_text(text, encoding="utf-8")
        check(build, new, network, spec, loaded=loaded)  # last: of the folder as it is going to be
        shutil.rmtree(new / "__pycache__", ignore_errors=True)  # of the factory's file, which the check has just imported
    return out


def _settings(run: Run, spec: InputSpec, outputs: tuple[Output, ...]) -> dict[str, Any]:
    """All that is needed to load the weights and to prepare a picture for them."""
    return {
        "graft": graft_version(),
        "name": run.name,
        "source": run.model.source,
        "args": dict(run.model.args),
        "task": run.task.kind,
        **_named(run, outputs),
        "in_channels": spec.in_channels,
        "image_size": spec.image_size,
        "mean": list(spec.mean),
        "std": list(spec.std),
        "preprocessing": {
            "resize": run.data.resize,
            "resize_to": run.data.resize_to or spec.image_size,
            "interpolation": spec.interpolation if run.data.interpolation == "auto" else run.data.interpolation,
            "pixels": "x / 255, then (x - mean) / std",
        },
    }


def _named(run: Run, outputs: tuple[Output, ...]) -> dict[str, Any]:
    """The names of what the network gives: classes, where that is all; else head by head, in the order of the logits."""
    if len(outputs) == 1 and outputs[0].kind == "class" and not outputs[0].name:
        return {"classes": list(outputs[0].labels)}
    told: list[dict[str, Any]] = []
    for output in outputs:
        more = {"threshold": threshold(run.task, output)} if output.kind == "labels" else {}
        told.append({"name": output.name, "kind": output.kind, "labels": list(output.labels), **more})
    return {"outputs": told}


def _text(value: Any) -> str:
    """Metadata of a safetensors file is text alone: what is not text is JSON."""
    return value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)


def copy_factory(run: Run, new: Path) -> str | None:
    """The file of `python:path.py:factory` goes into the export; its name there."""
    scheme, _, rest = run.model.source.partition(":")
    place = Path(rest.rpartition(":")[0])
    if scheme != "python" or place.suffix != ".py":
        return None
    name = place.name if place.stem not in PROGRAMS else f"{place.stem}_network.py"
    try:
        shutil.copyfile(place, new / name)
    except OSError as error:
        raise UserError(f"{place}: the file of model.source cannot be read: {error.strerror}") from None
    return name


def check(build: str, new: Path, network: nn.Module, spec: InputSpec, *, loaded: bool) -> None:
    """Load the export by its own lines and compare its logits with the network's."""
    again = make(build, new)
    if not loaded:
        tensors = again.state_dict()  # with the versions of its modules, which some (MNASNet) ask for and the file has not
        tensors.update(load_file(new / "model.safetensors"))
        again.load_state_dict(tensors)
    probe = torch.randn(2, spec.in_channels, spec.image_size, spec.image_size, generator=torch.Generator().manual_seed(0))
    with torch.inference_mode():
        expected, found = network(probe), again.eval()(probe)
    difference = float((expected - found).abs().max())
    if not difference <= TOLERANCE * max(1.0, float(expected.abs().max())):
        raise UserError(f"the exported network gives other answers than the trained one (by {difference:g}); nothing was written")
