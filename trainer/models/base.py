"""What the model room hands over, and what its modules hand to each other."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import nn

from trainer.config import UserError
from trainer.spec import Beside, InputSpec, Interpolation, Output


class WrongSizeError(UserError):
    """A network does not take images of the size that is asked for, and nothing was said of a size that it takes."""


@dataclass
class LoadReport:
    """What became of a checkpoint's tensors, by name; an entry of `adapted` also says what was done (`name: what`).

    `classes`: of a generator those of the task's that its class tables knew.
    """

    source: str
    matched: list[str] = field(default_factory=list)
    adapted: list[str] = field(default_factory=list)
    fresh: list[str] = field(default_factory=list)
    left_over: list[str] = field(default_factory=list)
    classes: tuple[str, ...] = ()

    def lines(self) -> list[str]:
        """The report as a person reads it: one line of counts, then a line for each group that is not simply a match."""
        counts = f"{len(self.matched):,} tensors matched, {len(self.adapted)} adapted, {len(self.fresh)} new"
        lines = [f"{self.source}: {counts}, {len(self.left_over)} left over"]
        lines += [f"  adapted   {entry}" for entry in self.adapted]
        for word, names in (("new", self.fresh), ("left over", self.left_over)):
            if names:
                lines.append(f"  {word:<9} {first_few(names)}")
        return lines


@dataclass
class Built:
    """An adapted network.

    `head`: dotted names of the output modules (main first, then auxiliary); `fresh`: names of the parameters that were made
    for this task or were not in the checkpoint; `spec`: what it takes. With `weights: none` only what the adaptation made is
    fresh, so that the strategy `head` freezes a random trunk when it is told to. `beside`: what else a task must know of a
    network that generates; none of others. `critic`: what it learns against, where that came with it,
    `critic_head`: the output modules of that, and `made_by`: the `source` and the `args` that both are made by, and `classes`.
    """

    network: nn.Module
    head: tuple[str, ...]
    fresh: tuple[str, ...]
    spec: InputSpec
    report: LoadReport
    beside: Beside | None = None
    critic: nn.Module | None = None
    critic_head: tuple[str, ...] = ()
    made_by: dict[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class Checkpoint:
    """Tensors by name, and the class names of the head where they are known; of several heads `outputs` says whose they are.

    `official`: published for classes that are not the task's by accident of number (torchvision's ImageNet weights), so that
    their head is kept only where the names agree. `untrained`: prefixes of names whose values are of no use. `grid`: rows and
    columns of its positions, where they are known and not as many.
    """

    source: str
    tensors: Mapping[str, torch.Tensor]
    classes: tuple[str, ...] | None = None
    official: bool = False
    untrained: tuple[str, ...] = ()
    outputs: tuple[Output, ...] = ()
    grid: tuple[int, int] | None = None


@dataclass(frozen=True)
class Origin:
    """What `model.source` and `model.weights` name, before anything is built or read: a function of the run file alone.

    `make(classes, image_size)` builds the network; `sized`: with that many outputs (else with the outputs of its author's
    choice). `image_size`: what it was trained at, or what the architecture is made for. `mean` and `std`: of the channels that
    the weights expect, where that is known. `read`: the checkpoint, if there is one; it is called after `make`, once.
    `interpolation`: how its author resizes images, where that is known. `shaped(classes, image_size, channels)`: like `make` for
    another number of channels than `channels`, those of the weights, where its library can do that itself.
    """

    name: str
    make: Callable[[int, int], nn.Module]
    sized: bool
    image_size: int | None
    mean: tuple[float, ...] | None
    std: tuple[float, ...] | None
    read: Callable[[], Checkpoint] | None
    interpolation: Interpolation | None = None
    shaped: Callable[[int, int, int], nn.Module] | None = None
    channels: int = 3


@dataclass(frozen=True)
class Need:
    """A file that a model is read from: `file` is where it is, or belongs in the cache of its library.

    `url`: where it is published, none for a file of the user's own; `sha256`: what its hash begins with, empty if not known.
    `bring`: for a repository of a hub, brings what is read of it into the hub's own cache and returns those files; `file` is then
    the folder of the cache. Raises UserError.
    """

    what: str
    file: Path
    url: str | None = None
    sha256: str = ""
    bring: Callable[[], list[Path]] | None = None


def first_few(names: list[str], limit: int = 4) -> str:
    """`a, b, c, d and 12 more`."""
    more = f" and {len(names) - limit:,} more" if len(names) > limit else ""
    return ", ".join(names[:limit]) + more
