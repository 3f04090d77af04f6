"""Paths of a run file, made absolute: a run is resumed from any directory, and a job works in another one."""

from __future__ import annotations

import os
from pathlib import Path

from trainer.config.model import Model
from trainer.config.run import Run

SAVED = ("timm", "transformers", "diffusers", "gan", "run")  # schemes of `model.source` that can name a folder


def absolute(run: Run, base: Path) -> Run:
    """Paths in sources and weights, made absolute so that the run can be resumed from any directory."""

    def path(text: str) -> str:
        return os.path.normpath(base / Path(text).expanduser())

    def source(text: str | None) -> str | None:
        scheme, colon, rest = (text or "").partition(":")
        if scheme in ("hf", "torchvision") and colon:
            from trainer.config.formats import places  # imports the sources, which import this package

            return f"{scheme}:{places.absolute(scheme, rest, base)}"
        if scheme not in ("folder", "csv", "pairs", "webdataset") or not colon:
            return text
        file, question, query = rest.partition("?")
        return f"{scheme}:{path(file)}{question}{query}"

    def moved(model: Model) -> Model:
        scheme, _, rest = model.source.partition(":")
        file, colon, factory = rest.rpartition(":")
        if scheme == "python" and colon and (file.endswith(".py") or "/" in file):
            model = model.model_copy(update={"source": f"python:{path(file)}:{factory}"})
        elif scheme in SAVED and model.source != "gan:resnet":
            model = model.model_copy(update={"source": f"{scheme}:{_saved(scheme, rest, base)}"})
        if "/" in model.weights or Path(model.weights).suffix:
            model = model.model_copy(update={"weights": path(model.weights)})
        return model

    data = run.data.model_copy(update={"train": source(run.data.train), "val": source(run.data.val)})
    if data.cache.path is not None:
        data = data.model_copy(update={"cache": data.cache.model_copy(update={"path": path(data.cache.path)})})
    evaluate = run.evaluate.model_copy(update={"source": source(run.evaluate.source)})
    run = run.moved(moved).model_copy(update={"data": data, "evaluate": evaluate})
    if (prior := getattr(run.task, "prior", None)) is None:
        return run
    prior = prior.model_copy(update={"data": source(prior.data)})
    return run.model_copy(update={"task": run.task.model_copy(update={"prior": prior})})


def _saved(scheme: str, rest: str, base: Path) -> str:
    """A folder of a saved model, absolute; the name of an architecture, or of a repository of the hub, stays."""
    name, hash_, part = rest.partition("#") if scheme == "diffusers" else (rest, "", "")
    places = [base / Path(name).expanduser(), *([base / "runs" / name] if scheme == "run" else [])]
    wanted = "run.yaml" if scheme == "run" else "."
    found = next((place for place in places if name and (place / wanted).exists()), None)
    if found is None:
        if scheme != "gan" and not name.startswith(("/", "./", "../", "~")):
            return rest
        found = places[0]
    return f"{os.path.normpath(found)}{hash_}{part}"
