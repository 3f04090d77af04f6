"""Networks that the one that learns is compared with and that stay as they are: a teacher, and the network as it came."""

from __future__ import annotations

import copy
import hashlib
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager
from dataclasses import replace
from typing import Any

import torch
from torch import nn
from torch.nn import functional

from trainer.config import UserError
from trainer.config.model import Model
from trainer.config.targets import Facts
from trainer.losses.base import Reference
from trainer.losses.taps import Taps
from trainer.models import run as run_source
from trainer.models.base import Built, Checkpoint
from trainer.models.build import Norm, build_model, origin_of
from trainer.models.given import as_given
from trainer.models.rows import rows
from trainer.spec import InputSpec, Output
from trainer.strategies.blocks_of import blocks_of
from trainer.tasks import build_task

Autocast = Callable[[], AbstractContextManager[Any]]


def teacher(
    config: Model, normalize: Norm, outputs: tuple[Output, ...], scale: torch.Tensor | None, spec: InputSpec,
    device: torch.device, autocast: Autocast, *, answers: bool, load_weights: bool = True,
) -> Reference:  # fmt: skip
    """The network that is learnt from. It takes the images of the one that learns (`spec`), resized to its own size and with its
    own normalisation; `answers`: its logits are learnt from, so that it must have the task's classes; `scale`: the task's.

    Raises UserError for a teacher of other classes or channels, or without weights.
    """
    if config.adapt.in_channels != spec.in_channels:
        raise UserError(
            f"losses.teacher: it takes {config.adapt.in_channels} channels and the images have {spec.in_channels}; write "
            f"losses.teacher.adapt.in_channels: {spec.in_channels}, which fits its first layer to them"
        )
    origin = origin_of(config)
    if config.adapt.image_size is None and origin.image_size is None:
        config = config.model_copy(update={"adapt": config.adapt.model_copy(update={"image_size": spec.image_size})})
    normalize = "auto" if origin.mean is not None else normalize
    if load_weights:
        built, drawn = as_given(config, normalize, outputs)
    else:
        built, drawn = build_model(config, normalize, outputs, 0, load_weights=False), []
    trunk = [name for name in drawn if not any(name.startswith(f"{head}.") for head in built.head)]
    if trunk:
        raise UserError(f"losses.teacher: {built.report.source} has no values for '{trunk[0]}', so it would teach by chance")
    if drawn and answers:
        few = ", ".join([label for output in outputs for label in output.labels][:4])
        raise UserError(
            f"losses.teacher: {built.report.source} does not answer in all classes of the task ({few} …): '{drawn[0]}' would be "
            "drawn by chance; take a teacher that was trained on them, say by losses.teacher.adapt.rename what it calls a class, "
            "or learn from its features or its attention"
        )
    network = still(built.network, device)
    taps = Taps(network, "the teacher")
    given = built.spec

    def answer(images: torch.Tensor) -> Any:
        with torch.no_grad(), autocast():
            return network(as_taken(images, spec, given))

    units = in_units(config, outputs, scale) if answers else None
    return Reference(network, taps, block_names(network, built.head), answer, None if units is None else units.to(device))


def in_units(config: Model, outputs: tuple[Output, ...], scale: torch.Tensor | None) -> torch.Tensor | None:
    """[2, all labels] float32, by which the logits of a teacher become those of a task whose numbers are `scale[0] * logits +
    scale[1]`; none where they are the same. Numbers of a teacher that is no run of graft are taken to be in the data's units.
    """
    given = _scale_of_run(config, outputs)
    if scale is None and given is None:
        return None
    width = sum(len(output.labels) for output in outputs)
    same = torch.stack([torch.ones(width, dtype=torch.float64), torch.zeros(width, dtype=torch.float64)])
    own, other = (same if one is None else one for one in (scale, given))
    return torch.stack([other[0] / own[0], (other[1] - own[1]) / own[0]]).float()


def _scale_of_run(config: Model, outputs: tuple[Output, ...]) -> torch.Tensor | None:
    """The units of a run's numbers [2, all labels], of the rows that `outputs` take of its heads. Raises UserError for a label
    that takes none.
    """
    scheme, _, rest = config.source.partition(":")
    if scheme != "run":
        return None
    source = run_source.Source(rest, config)
    state = source.loaded.state
    if "facts" not in state:
        return None
    task = build_task(source.run.task, Facts.from_json(state["facts"]))
    if task.scale is None:
        return None
    parts = torch.split(task.scale, [len(output.labels) for output in task.outputs], dim=1)
    given = dict(zip([output.name for output in task.outputs], parts, strict=True))
    labels = {output.name: output.labels for output in task.outputs}
    found: list[torch.Tensor] = []
    for output in outputs:
        settings = config.adapt.of(output.name)
        old = (settings.take or output.name) if any(labels) else ""  # a lone head without a name is that of every output
        picks: tuple[int | None, ...] = ()
        if old in labels:
            made = Checkpoint(config.source, {}, labels[old])
            counts = {len(labels[old])}
            picks = rows(made, counts, settings, output.labels, "losses.teacher.adapt", lone=len(outputs) == 1).picks
        for label, pick in zip(output.labels, picks or [None] * len(output.labels), strict=True):
            if pick is None:
                raise UserError(
                    f"losses.teacher: {config.source} has no number for '{label}' to learn from; write what it calls it as "
                    "losses.teacher.adapt.rename, and the head that it is of as losses.teacher.adapt.take"
                )
            found.append(given[old][:, pick])
    return torch.stack(found, dim=1)


def seeing(model: Model, key: str, device: torch.device, *, load_weights: bool = True) -> Built:
    """A network whose features are compared, as it stays; its output layer is of no use. `key`: where the run file names it.

    Raises UserError for one that would see by chance.
    """
    model = model.model_copy(update={"adapt": model.adapt.model_copy(update={"head": "new"})})
    built = build_model(model, "auto", (Output("", ("0", "1")),), 0, load_weights=load_weights)
    fresh = [name for name in built.fresh if not any(name.startswith(f"{head}.") for head in built.head)]
    if fresh:
        raise UserError(f"{key}: {built.report.source} has no values for '{fresh[0]}', which would be random")
    return replace(built, network=still(built.network, device))


def start(network: nn.Module, head: Sequence[str], device: torch.device, autocast: Autocast) -> Reference:
    """A copy of a network as it is now."""
    copied = still(copy.deepcopy(network), device)

    def answer(images: torch.Tensor) -> Any:
        with torch.no_grad(), autocast():
            return copied(images)

    return Reference(copied, Taps(copied, "the network as it came"), block_names(copied, head), answer)


def block_names(network: nn.Module, head: Sequence[str]) -> list[str]:
    """The blocks of the trunk that are modules, from the input to the head."""
    modules = dict(network.named_modules())
    return [block.name for block in blocks_of(network, head) if block.name and block.name in modules]


def fingerprint(network: nn.Module) -> str:
    """A sha256 of all tensors of a network, with their names."""
    digest = hashlib.sha256()
    for name, value in sorted(network.state_dict().items()):
        digest.update(f"{name} {value.dtype} {list(value.shape)}".encode())
        digest.update(value.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy())
    return digest.hexdigest()


def still(network: nn.Module, device: torch.device) -> nn.Module:
    """The network on a device, in eval mode, learning nothing."""
    return network.to(device).eval().requires_grad_(False)


def as_taken(images: torch.Tensor, own: InputSpec, other: InputSpec) -> torch.Tensor:
    """Images [n, c, h, w] that are normalised for one network, as another one takes them."""
    if (own.mean, own.std) != (other.mean, other.std):

        def column(values: tuple[float, ...]) -> torch.Tensor:
            return torch.tensor(values, dtype=torch.float64)[:, None, None]

        scale = column(own.std) / column(other.std)
        shift = (column(own.mean) - column(other.mean)) / column(other.std)
        images = torch.addcmul(shift.to(images), images, scale.to(images))
    if own.image_size != other.image_size:
        size = (other.image_size, other.image_size)
        images = functional.interpolate(images, size=size, mode="bilinear", antialias=True, align_corners=False)
    return images
