"""From `model` in the run file to a network that makes pictures of pictures."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from contextlib import ExitStack
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import nn

from trainer.config import UserError
from trainer.config.run import Model
from trainer.models.adapt import seeded
from trainer.models.base import Built, Checkpoint, LoadReport, first_few
from trainer.models.decoder import Decoder, Translating, Untimed
from trainer.models.generator import build_generator, denoiser_of
from trainer.models.sizes import nearest_working
from trainer.spec import Generator, InputSpec, Translator

_HALF = 0.5
_LEAST = 2  # levels that a decoder needs
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
    removed = _cut(trunk, levels, spec, built.report.source)
    with seeded(seed):
        decoder = Decoder([level.channels for level in levels], spec.in_channels, wanted.channels, wanted.width)
    network = Translating(trunk, [level.name for level in levels], decoder)
    kept = dict(trunk.named_parameters())
    fresh = [f"trunk.{name}" for name in built.fresh if name in kept]
    new = [f"decoder.{name}" for name, _ in decoder.named_parameters()]
    report = built.report
    report.fresh = [f"trunk.{name}" for name in report.fresh if name in kept] + new
    report.left_over += removed
    return Built(network, ("decoder",), (*fresh, *new), spec, report)


@dataclass(frozen=True)
class Level:
    """The last module that gives maps of a size: its name and its channels."""

    name: str
    channels: int


@dataclass
class _Trace:
    """What a pass showed: events in their order, the last of each size, where a convolution ran."""

    began: list[tuple[int, str]] = field(default_factory=list)
    ended: dict[int, tuple[int, str, int]] = field(default_factory=dict)  # by size: (when, module, channels)
    worked: set[int] = field(default_factory=set)
    clock: int = 0


def _follow(network: nn.Module, spec: InputSpec) -> _Trace:
    """Send a picture through; raises what the network raises."""
    found = _Trace()

    def start(name: str) -> Callable[[nn.Module, object], None]:
        def note(_module: nn.Module, _given: object) -> None:
            found.clock += 1
            found.began.append((found.clock, name))

        return note

    def end(name: str) -> Callable[[nn.Module, object, object], None]:
        def note(module: nn.Module, _given: object, output: object) -> None:
            found.clock += 1
            if (
                isinstance(module, nn.Identity)
                or not isinstance(output, torch.Tensor)
                or output.dim() != 4
                or output.shape[2] != output.shape[3]
            ):
                return
            size = output.shape[-1]
            if size < 2 or size > min(found.ended, default=size):
                return  # one number a channel, or wider again than what was: on the way to an answer
            found.ended[size] = (found.clock, name, output.shape[1])
            if isinstance(module, nn.Conv2d | nn.Linear):
                found.worked.add(size)

        return note

    training = network.training
    device = next(network.parameters()).device
    with ExitStack() as stack:
        for name, module in network.named_modules():
            if name:
                stack.callback(module.register_forward_pre_hook(start(name)).remove)
                stack.callback(module.register_forward_hook(end(name)).remove)
        stack.enter_context(torch.no_grad())
        stack.enter_context(torch.random.fork_rng(devices=[]))
        network.eval()
        try:
            network(torch.zeros(1, spec.in_channels, spec.image_size, spec.image_size, device=device))
        finally:
            network.train(training)
    return found


def pyramid(network: nn.Module, spec: InputSpec, name: str) -> list[Level]:
    """The maps of a trunk from fine to coarse, one of each size at which a convolution works. Raises UserError."""
    found = _follow(network, spec)
    sizes = sorted(found.ended.keys() & found.worked, reverse=True)
    levels = [Level(*found.ended[size][1:]) for size in sizes]
    if len(levels) < _LEAST:
        what = f"only maps of one size ('{levels[0].name}')" if levels else "no maps [n, channels, height, width]"
        raise UserError(
            f"{name}: gives {what} of images of {spec.image_size} pixels, and a decoder needs two sizes at least; take a "
            "convolutional trunk (ResNet, VGG, EfficientNet, ConvNeXt), larger images, or a network of your own that gives "
            "pictures (python:)"
        )
    return levels


def _cut(network: nn.Module, levels: list[Level], spec: InputSpec, name: str) -> list[str]:
    """Take out what comes after the last maps; returns its parameters' names. Raises UserError where that breaks the rest."""
    found = _follow(network, spec)
    last = next(when for when, module, _ in found.ended.values() if module == levels[-1].name)
    first: dict[str, int] = {}
    for when, module in found.began:
        first.setdefault(module, when)
    late = [module for module, _ in network.named_modules() if module and first.get(module, last + 1) > last]
    # a module that was never called may still be a container whose children are called by themselves
    called = {module for module, when in first.items() if when <= last}
    late = [module for module in late if not any(other.startswith(f"{module}.") for other in called)]
    outer = [module for module in late if not any(module.startswith(f"{other}.") for other in late)]
    removed = [f"{module}.{inner}" for module in outer for inner, _ in network.get_submodule(module).named_parameters()]
    for module in outer:
        parent, _, child = module.rpartition(".")
        setattr(network.get_submodule(parent), child, nn.Identity())
    try:
        again = pyramid(network, spec, name)
    except UserError:
        raise
    except Exception as error:
        raise UserError(
            f"{name}: does not run without the layers after '{levels[-1].name}' ({type(error).__name__}: {error}); write its "
            "trunk as a network of your own (python:)"
        ) from error
    if [level.channels for level in again] != [level.channels for level in levels]:
        raise UserError(f"{name}: gives other maps without the layers after '{levels[-1].name}'; write its trunk as python:")
    return removed


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
    return Built(network, head, tuple(f"network.{name}" for name in built.fresh), built.spec, built.report)


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
    report = LoadReport(f"{source.name}, no checkpoint read")
    if source.read is not None and load_weights:
        report = _fill(network, source.read())
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
    same = Translator(wanted.channels, task.decoder.width)
    built = build_translator(inner, same, seed, sees, load_weights=False)
    built.report = LoadReport(f"run:{source.folder.name}, no checkpoint read")
    spec = InputSpec(source.spec.in_channels, size, source.spec.mean, source.spec.std, source.spec.interpolation)
    if config.weights != "none" and load_weights:
        built.report = _fill(built.network, source.read())
    return Built(built.network, built.head, tuple(built.report.fresh), spec, built.report)


def _fill(network: nn.Module, checkpoint: Checkpoint) -> LoadReport:
    """Copy the tensors of the same names. Raises UserError where shapes differ, or fewer than half are there."""
    own: Mapping[str, torch.Tensor] = network.state_dict()
    given = checkpoint.tensors
    wrong = [
        f"{name} {list(given[name].shape)} in the file, {list(value.shape)} in the network"
        for name, value in own.items()
        if name in given and given[name].shape != value.shape
    ]
    if wrong:
        raise UserError(f"{checkpoint.source}: a checkpoint of another shape: {first_few(wrong, 3)}")
    matched = [name for name in own if name in given]
    fresh = [name for name in own if name not in given]
    if 2 * len(matched) < len(own) or not matched:
        raise UserError(
            f"{checkpoint.source}: {len(matched)} of the network's {len(own)} tensors are in it, so it is the checkpoint of "
            f"another network; the network has {first_few(fresh, 3)}"
        )
    with torch.no_grad():
        for name in matched:
            own[name].copy_(given[name])
    return LoadReport(checkpoint.source, matched=matched, fresh=fresh, left_over=[name for name in given if name not in own])
