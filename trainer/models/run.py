"""`run:NAME` or `run:FOLDER`: another graft run is the source, with the checkpoint that `model.weights` names.

The architecture, the class names, the normalisation, the input size and the interpolation are those of that run. Its training
data and the weights that it began with are not needed, however many grafts stand behind it.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import cached_property, partial
from pathlib import Path

import torch
from torch import nn

from trainer.checkpoint import Store, averaged
from trainer.checkpoint.store import Loaded
from trainer.config import RefusedError, Run, UserError, nearest
from trainer.config.run import Model
from trainer.models.base import Checkpoint, Need, Origin
from trainer.models.class_tables import Table
from trainer.models.file import read_checkpoint
from trainer.models.gan import PairSource, pair_of, without_weights
from trainer.models.generator import Denoiser, denoiser_of
from trainer.rundir import RunDir
from trainer.spec import InputSpec, Output

# How the tensors of a run are had whose strategy put layers into its network. The model room knows no strategy, so
# `trainer.restored` leaves the function here: (folder, step) -> the tensors of the network that the run's source describes.
merged: list[Callable[[RunDir, str], dict[str, torch.Tensor]]] = []


def origin(rest: str, config: Model) -> Origin:
    """The network of a run, and its weights `best` (the default), `last`, of a step, or `none`. Raises UserError."""
    source = Source(rest, config)
    if not source.outputs:
        raise UserError(
            f"run:{source.folder.name} makes images and sees none; write `graft export {source.folder.name}` and "
            f"diffusers:{source.folder.export}#unet, whose way down sees images"
        )
    spec = source.spec
    return Origin(
        f"run:{source.folder.name}", partial(source.make, channels=spec.in_channels), sized=False, image_size=spec.image_size,
        mean=spec.mean, std=spec.std, read=None if config.weights == "none" else source.read, interpolation=spec.interpolation,
        channels=spec.in_channels,
    )  # fmt: skip


def denoiser(rest: str, config: Model) -> Denoiser:
    """The generator of a run, as that run left it. Raises UserError for a run that generates nothing."""
    source = Source(rest, config)
    said = source.loaded.state.get("generator")
    if said is None:
        raise UserError(
            f"run:{source.folder.name} has task {source.run.task.kind}, whose network takes no noise out of images; name a run "
            "that does"
        )
    inner = denoiser_of(source.run.model)
    known = said["dropped"] or inner.spare
    return replace(
        inner, name=f"run:{source.folder.name}", channels=said["channels"], size=said["size"], vae=said["vae"],
        source=said.get("source", False),
        words=said["text"], read=None if config.weights == "none" else source.read, schedule=said["schedule"],
        table=Table(len(said["classes"]) + known, tuple(said["classes"]), known) if said["classes"] else None,
    )  # fmt: skip


def pair(rest: str, config: Model) -> PairSource:
    """The generator of a run with its critic, as that run left them. Raises UserError for a run that has no such."""
    source = Source(rest, config)
    said = source.loaded.state.get("pair")
    if said is None:
        raise UserError(
            f"run:{source.folder.name} has task {source.run.task.kind}, and no critic of what it makes; name a run of a gan"
        )
    table = Table(len(said["classes"]), tuple(said["classes"]), False) if said["classes"] else None

    def read() -> tuple[Checkpoint, Checkpoint]:
        found = source.read()
        return found, replace(found, tensors=read_checkpoint(source.loaded.path / "critic.safetensors").tensors)

    return replace(
        pair_of(without_weights(source.run.model, source.loaded.state)), name=f"run:{source.folder.name}", table=table,
        read=None if config.weights == "none" else read, channels=source.spec.in_channels, size=source.spec.image_size,
    )  # fmt: skip


def needs(rest: str, config: Model) -> list[Need]:
    """The files of the run that are read."""
    source = Source(rest, config)
    what = f"the run {source.folder.name}"
    files = [source.folder.config, source.loaded.path / "state.json", *source.files]
    if "pair" in source.loaded.state:
        files.append(source.loaded.path / "critic.safetensors")
    return [Need(what, file) for file in files]


def root(config: Model) -> Model:
    """The settings of the network that a run, or a run of a run, was grafted onto; those of any other source as they are."""
    seen: list[Path] = []
    while config.source.startswith("run:"):
        folder = _folder(config.source.partition(":")[2])
        if folder.path in seen:
            raise UserError(f"model.source: {folder.path} is grafted onto itself")
        seen.append(folder.path)
        config = folder.load().model
    return config


@dataclass
class Source:
    """A run as a source: its folder, its settings, its checkpoint, each read when it is asked for."""

    rest: str
    config: Model

    def __post_init__(self) -> None:
        if self.config.args:
            raise UserError("model.args cannot be set for a run: its network is what it is")

    @cached_property
    def folder(self) -> RunDir:
        return _folder(self.rest)

    @cached_property
    def run(self) -> Run:
        root(self.config)  # refuses a circle, which only edited run files have
        return self.folder.load()

    @cached_property
    def loaded(self) -> Loaded:
        """The checkpoint, every byte of it checked."""
        which = self.config.weights
        if which not in ("best", "last", "none") and not which.isdigit():
            raise UserError(f"model.weights is '{which}': of a run there are best, last, a step, or none")
        try:
            return Store(self.folder.checkpoints, keep=self.run.checkpoint.keep).named("best" if which == "none" else which)
        except RefusedError as error:
            raise UserError(f"model.source run:{self.folder.name}: {error}") from None

    @cached_property
    def spec(self) -> InputSpec:
        said = self.loaded.state["spec"]
        return InputSpec(**{**said, "mean": tuple(said["mean"]), "std": tuple(said["std"])})

    @cached_property
    def outputs(self) -> tuple[Output, ...]:
        """What the heads of that run give."""
        state = self.loaded.state
        said = state["outputs"] if "outputs" in state else [["", state["classes"]]]
        return tuple(Output(name, tuple(labels)) for name, labels in said)

    @property
    def files(self) -> list[Path]:
        """The tensors: the averaged ones, where the run kept an average, stand for those of the network."""
        found = self.loaded.path.glob("model*.safetensors")
        return sorted(file for file in found if file.name.partition(".")[0] in ("model", "model-average"))

    def make(self, classes: int, size: int, channels: int) -> nn.Module:
        """The network as that run built it, for images of `size`, with its own classes; it is adapted like any other."""
        from trainer.models.build import build_model

        adapt = self.run.model.adapt.model_copy(update={"image_size": size, "in_channels": channels})
        model = self.run.model.model_copy(update={"adapt": adapt})
        return build_model(model, "none", self.outputs, int(torch.initial_seed()) % 2**32, load_weights=False).network

    def read(self) -> Checkpoint:
        """The tensors and class names. Raises UserError for a damaged file."""
        tensors = averaged(self.loaded.path)
        if any(".base_layer." in name for name in tensors):  # layers of an adapter: merged into the weights they stand beside
            tensors = merged[0](self.folder, str(self.loaded.step))
        several = self.outputs if any(output.name for output in self.outputs) else ()
        classes = None if several or not self.outputs else self.outputs[0].labels
        return Checkpoint(f"run {self.folder.name}, step {self.loaded.step:,}", tensors, classes, outputs=several)


def _folder(rest: str) -> RunDir:
    """A run's folder, by path or by its name below `runs`. Raises UserError."""
    for path in (Path(rest).expanduser(), Path("runs") / rest):
        if (path / "run.yaml").is_file():
            return RunDir(path.resolve())
    near = sorted(file.parent.name for file in Path("runs").glob("*/run.yaml"))
    raise UserError(f"model.source: run:{rest}: no such run here or in {Path('runs').resolve()}{nearest(Path(rest).name, near)}")
