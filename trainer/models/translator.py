"""From `model` in the run file to a network that makes pictures of pictures."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import nn

from trainer.config import UserError
from trainer.config.run import Model
from trainer.models.adapt import seeded
from trainer.models.base import Built, LoadReport
from trainer.models.decoder import Decoder, Residual, Translating, Untimed
from trainer.models.filling import fill
from trainer.models.generator import build_generator, denoiser_of
from trainer.models.pyramid import cut, pyramid
from trainer.models.sizes import nearest_working
from trainer.spec import Generator, InputSpec, Translator

_HALF = 0.5
_AROUND = 64  # pixels to either side, where a size that works is looked for


def build_translator(
    config: Model, wanted: Translator, seed: int, sees: Callable[[Model], Built], *, load_weights: bool
) -> Built:  # fmt: skip
    """Build the network and fill it from its checkpoint; see `build_model`. `sees` builds a network that sees images.

    A network of one's own that gives pictures is taken as it is, and so is a UNet of diffusers; any other one is a trunk, which
    gets a decoder. Raises UserError.
    """
    scheme, _, rest = config.source.partition(":")
    if config.adapt.head_module is not None:
        raise UserError("model.adapt.head_module names the output layer of a classifier; leave it out for a network of pictures")
    if scheme == "run" and (made := _of_run(rest, config, wanted, seed, sees, load_weights=load_weights)) is not None:
        return made
    if scheme == "diffusers":
        return _diffusers(config, wanted, seed, load_weights=load_weights)
    if scheme == "python" and (whole := _whole(rest, config, wanted, seed, load_weights=load_weights)) is not None:
        return whole
    return _grafted(sees(config), config, wanted, seed)


def _grafted(built: Built, config: Model, wanted: Translator, seed: int) -> Built:
    """A trunk without its head, and a decoder."""
    trunk, spec = built.network, built.spec
    levels = pyramid(trunk, spec, built.report.source)
    removed = cut(trunk, levels, spec, built.report.source)
    with seeded(seed):
        decoder = Decoder([level.channels for level in levels], spec.in_channels, wanted.channels, wanted.width)
    network: nn.Module = Translating(trunk, [level.name for level in levels], decoder)
    kept = dict(trunk.named_parameters())
    fresh = [f"trunk.{name}" for name in built.fresh if name in kept]
    new = [f"decoder.{name}" for name, _ in decoder.named_parameters()]
    report = built.report
    report.fresh = [f"trunk.{name}" for name in report.fresh if name in kept] + new
    report.left_over += removed
    made = Built(network, ("decoder",), (*fresh, *new), spec, report)
    residual = wanted.alike if wanted.residual is None else wanted.residual
    return _residual(made, decoder.out, wanted.channels) if residual else made


def _residual(built: Built, last: nn.Module, channels: int) -> Built:
    """Its output added to its input; `last`, the layer that makes the output, begins at zero."""
    for parameter in last.parameters():
        nn.init.zeros_(parameter)
    spec, report = built.spec, built.report
    network = Residual(built.network, channels, spec.mean, spec.std)
    for names in (report.matched, report.adapted, report.fresh):
        names[:] = [f"network.{name}" for name in names]
    head, fresh = ([f"network.{name}" for name in names] for names in (built.head, built.fresh))
    return Built(network, tuple(head), tuple(fresh), spec, report)


def _diffusers(config: Model, wanted: Translator, seed: int, *, load_weights: bool) -> Built:
    """A UNet that takes noise out of images, which learns to make other pictures of them."""
    channels = config.adapt.in_channels
    if channels != wanted.channels:
        raise UserError(
            f"{config.source}: gives as many channels as it takes, and the pictures go from {channels} to {wanted.channels}; "
            f"write model.adapt.in_channels: {wanted.channels} (grey is repeated)"
        )
    source = denoiser_of(config)
    if source.text:
        raise UserError(f"{source.name}: is told a text, and pictures are made of pictures alone; name a UNet2DModel")
    if load_weights and source.read is not None and source.vae is not None:
        raise UserError(
            f"{source.name}: was trained on the latents of {source.vae}, and pictures are made of pixels; name a UNet2DModel "
            "that was trained on these, or write model.weights: none"
        )
    built = build_generator(config, Generator(), seed, load_weights=load_weights)
    if type(built.network).__name__ != "UNet2DModel":
        raise UserError(f"{config.source}: is a {type(built.network).__name__}, and only a UNet2DModel translates pictures here")
    network = Untimed(built.network, wanted.channels)
    head = tuple(f"network.{name}" for name in built.head)
    made = Built(network, head, tuple(f"network.{name}" for name in built.fresh), built.spec, built.report)
    return _residual(made, network.get_submodule(head[0]), wanted.channels) if wanted.residual else made


def _whole(rest: str, config: Model, wanted: Translator, seed: int, *, load_weights: bool) -> Built | None:
    """A network of one's own that gives pictures; none where it gives anything else. Raises UserError."""
    from trainer.models.python import origin

    source = origin(rest, config)
    with seeded(seed):
        network = source.make(0, 0)
    size, channels = config.adapt.image_size, config.adapt.in_channels
    if size is None:
        raise UserError(f"model.adapt.image_size is missing: {source.name} does not say what size it takes; write it in pixels")

    def shape(side: int) -> tuple[list[int] | None, str]:
        """The shape of what it gives, and why that is no shape at all; none where it fails."""
        try:
            with torch.no_grad(), torch.random.fork_rng(devices=[]):
                made = network.eval()(torch.zeros(2, channels, side, side))
        except Exception as error:  # the network is anybody's: anything can come
            return None, f"{type(error).__name__}: {error}".splitlines()[0][:200]
        return (list(made.shape), "") if isinstance(made, torch.Tensor) else ([], f"it gives a {type(made).__name__}")

    found, why = shape(size)
    if found != [2, wanted.channels, size, size]:
        _refused(source.name, size, channels, wanted.channels, found, why, lambda side: shape(side)[0])
        return None
    if wanted.residual:
        raise UserError(
            f"task.residual: {source.name} gives pictures, and which of its layers makes them is not known; add the input to the "
            "output in its own file, and leave residual out"
        )
    report = LoadReport(f"{source.name}, no checkpoint read")
    if source.read is not None and load_weights:
        report = fill(network, source.read())
    half = (_HALF,) * channels
    last = [name for name, module in network.named_modules() if isinstance(module, nn.Conv2d | nn.ConvTranspose2d | nn.Linear)]
    return Built(network.train(), tuple(last[-1:]), tuple(report.fresh), InputSpec(channels, size, half, half), report)


def _refused(
    name: str, size: int, given: int, made: int, found: list[int] | None, why: str, shape: Callable[[int], list[int] | None]
) -> None:  # fmt: skip
    """Raises UserError, with the nearest sizes that work, for a network that gives pictures, but not these."""
    pictures = found is not None and len(found) == 4 and min(found[2:]) > 1
    if found is not None and not pictures:  # a classifier's answers, whatever the size
        return
    near = [str(side) for side in nearest_working(lambda side: shape(side) == [2, made, side, side], size, _AROUND)]
    if near or pictures:
        hint = f"; the nearest sizes that it does are {' and '.join(near)}: set model.adapt.image_size" if near else ""
        of = why or f"of {[2, given, size, size]} it makes {found}"
        raise UserError(f"{name}: does not make {made} channels of {size} x {size} of pictures of {given} ({of}){hint}")


def _of_run(
    rest: str, config: Model, wanted: Translator, seed: int, sees: Callable[[Model], Built], *, load_weights: bool
) -> Built | None:  # fmt: skip
    """The network of a run that translates, as that run left it; none for any other run."""
    from trainer.models import run as runs

    source = runs.Source(rest, config)
    task: Any = source.run.task
    if task.kind == "cycle":
        raise UserError(f"run:{source.folder.name} has two networks, one for each way; write task: {{kind: cycle}}")
    if not task.translates:
        return None
    if task.channels != wanted.channels or source.spec.in_channels != config.adapt.in_channels:
        raise UserError(
            f"run:{source.folder.name} makes {task.channels} channels of {source.spec.in_channels}, and {wanted.channels} of "
            f"{config.adapt.in_channels} are wanted; write task.channels: {task.channels} and model.adapt.in_channels: "
            f"{source.spec.in_channels}"
        )
    size = config.adapt.image_size or source.spec.image_size
    adapt = source.run.model.adapt.model_copy(update={"image_size": size})
    inner = source.run.model.model_copy(update={"adapt": adapt, "weights": "none"})
    own = Translator(wanted.channels, task.decoder.width, None if task.residual == "auto" else task.residual, alike=task.alike)
    built = build_translator(inner, own, seed, sees, load_weights=False)
    residual = isinstance(built.network, Residual)
    if wanted.residual not in (None, residual):
        raise UserError(
            f"task.residual is {str(wanted.residual).lower()}, and run:{source.folder.name} has a network that "
            f"{'adds its output' if residual else 'does not add its output'} to its input; leave residual out"
        )
    built.report = LoadReport(f"run:{source.folder.name}, no checkpoint read")
    spec = InputSpec(source.spec.in_channels, size, source.spec.mean, source.spec.std, source.spec.interpolation)
    if isinstance(built.network, Residual):
        built.network.normalised(spec.mean, spec.std)
    if config.weights != "none" and load_weights:
        built.report = fill(built.network, source.read())
    return Built(built.network, built.head, tuple(built.report.fresh), spec, built.report)
