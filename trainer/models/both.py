"""From `model` in the run file to two networks that make pictures of each other's."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any

import torch
from torch import nn

from trainer.config import UserError
from trainer.config.model import Model
from trainer.models.base import Built, LoadReport
from trainer.models.decoder import Residual
from trainer.models.filling import fill
from trainer.spec import Cyclic, InputSpec, Translator

Build = Callable[[Model, Translator, int], Built]


class Normalising(nn.Module):
    """A network that takes pictures in [-1, 1] and normalises them as its weights want it."""

    mean: torch.Tensor
    std: torch.Tensor

    def __init__(self, network: nn.Module, mean: Sequence[float], std: Sequence[float]) -> None:
        super().__init__()
        self.network = network
        for name, values in (("mean", mean), ("std", std)):
            self.register_buffer(name, torch.tensor(values)[:, None, None])

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        """[n, channels, h, w]."""
        made: torch.Tensor = self.network((images / 2 + 0.5 - self.mean) / self.std)
        return made


class Both(nn.Module):
    """The way from pictures of a first kind to those of a second, and the way back."""

    def __init__(self, forth: nn.Module, back: nn.Module) -> None:
        super().__init__()
        self.forth, self.back = forth, back

    def forward(self, first: torch.Tensor, second: torch.Tensor, same: bool) -> tuple[torch.Tensor, ...]:
        """What is made of both (second, first kind), what is made of that again (first, second kind); with `same` also what
        each way makes of what it should make (second, first kind).
        """
        seconds, firsts = self.forth(first), self.back(second)
        again = self.back(seconds), self.forth(firsts)
        return (seconds, firsts, *again, *((self.forth(second), self.back(first)) if same else ()))


def build_both(config: Model, wanted: Cyclic, seed: int, build: Build, *, load_weights: bool) -> Built:
    """Build both networks and fill them from their checkpoints; see `build_model`. `build` builds one of them.

    Without settings of its own the way back is another network like the first one, for the channels that it takes. Raises
    UserError.
    """
    scheme, _, rest = config.source.partition(":")
    if scheme == "run" and (made := _of_run(rest, config, wanted, seed, build, load_weights=load_weights)) is not None:
        return made
    forth = build(config, wanted.forth, seed)
    size = forth.spec.image_size
    model = config if wanted.back is None else wanted.back
    adapt = model.adapt.model_copy(update={"in_channels": wanted.forth.channels, "image_size": size})
    try:
        way = replace(wanted.forth, channels=forth.spec.in_channels)
        back = build(model.model_copy(update={"adapt": adapt}), way, seed + 1)
    except UserError as error:
        hint = "" if wanted.back is not None else ". Another network for it is named as task.back"
        told = f"the way back, from {wanted.forth.channels} channels to {forth.spec.in_channels}"
        raise UserError(f"{told}: {error}{hint}") from error
    ways = {"forth": forth, "back": back}
    report = LoadReport(" and ".join(dict.fromkeys(way.report.source for way in ways.values())))
    for name, built in ways.items():
        for group in ("matched", "adapted", "fresh", "left_over"):
            getattr(report, group).extend(_within(name, getattr(built.report, group)))
    network = Both(*(Normalising(built.network, built.spec.mean, built.spec.std) for built in ways.values()))
    head, fresh = (tuple(n for name in ways for n in _within(name, getattr(ways[name], part))) for part in ("head", "fresh"))
    half = (0.5,) * forth.spec.in_channels
    return Built(network, head, fresh, replace(forth.spec, mean=half, std=half), report)


def _within(way: str, names: Sequence[str]) -> list[str]:
    return [f"{way}.network.{name}" for name in names]


def _of_run(rest: str, config: Model, wanted: Cyclic, seed: int, build: Build, *, load_weights: bool) -> Built | None:
    """Both networks of a run that has two, as that run left them; none for any other run. Raises UserError."""
    from trainer.models import run as runs

    source = runs.Source(rest, config)
    task: Any = source.run.task
    if task.kind != "cycle":
        return None
    name, (given, made) = source.folder.name, (source.spec.in_channels, task.channels)
    if wanted.back is not None:
        raise UserError(f"task.back: run:{name} has a way back of its own; leave it out")
    if (given, made) != (config.adapt.in_channels, wanted.forth.channels):
        raise UserError(
            f"run:{name} goes from {given} channels to {made}, and {config.adapt.in_channels} and {wanted.forth.channels} are "
            f"wanted; write model.adapt.in_channels: {given} and task.channels: {made}"
        )
    size = config.adapt.image_size or source.spec.image_size
    adapt = source.run.model.adapt.model_copy(update={"image_size": size})
    inner = source.run.model.model_copy(update={"adapt": adapt, "weights": "none"})
    residual = None if task.residual == "auto" else task.residual
    other = None if task.back is None else task.back.model_copy(update={"weights": "none"})
    built = build_both(inner, Cyclic(Translator(made, task.decoder.width, residual), other), seed, build, load_weights=False)
    adds = isinstance(built.network.get_submodule("forth.network"), Residual)
    if wanted.forth.residual not in (None, adds):
        raise UserError(
            f"task.residual is {str(wanted.forth.residual).lower()}, and run:{name} has networks that "
            f"{'add their output' if adds else 'do not add their output'} to their input; leave residual out"
        )
    built.report = LoadReport(f"run:{name}, no checkpoint read")
    half = (0.5,) * given
    spec = InputSpec(given, size, half, half, source.spec.interpolation)
    if config.weights != "none" and load_weights:
        built.report = fill(built.network, source.read())
    return Built(built.network, built.head, tuple(built.report.fresh), spec, built.report)
