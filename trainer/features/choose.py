"""Whether features of a frozen first part are kept, where the network is cut for it, and why not."""

from __future__ import annotations

import logging
import math
from collections.abc import Callable, Iterable
from contextlib import AbstractContextManager
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn

from trainer.config import Run, UserError
from trainer.data.transforms import training
from trainer.features.cut import Cut
from trainer.features.search import Search
from trainer.runtime.computing import TYPES
from trainer.spec import InputSpec

log = logging.getLogger("graft.features")
DTYPES = {"fp32": torch.float32, **TYPES}
_SHARE = {"auto": 0.25, "features": 0.05}  # of the work of a forward pass that has to come before the cut
_PARAMETERS = 0.01  # of the network's numbers: with fewer before it, no cut is looked for
_WORK = 3e10  # operations that are saved at least: a second on a CPU, with the decoding some more


@dataclass(frozen=True)
class Kept:
    """Numbers of a sample that are kept: their `shape`, `where` they stand in the network (in words), how many `views` of each
    sample, as which `dtype` they are `given` to what comes after and as which they are kept; `cut`: where the network itself is
    cut there.
    """

    where: str
    shape: tuple[int, ...]
    given: torch.dtype
    dtype: torch.dtype
    views: int = 1
    cut: Cut | None = None

    @property
    def row(self) -> int:
        """Bytes of a sample."""
        return torch.Size(self.shape).numel() * self.dtype.itemsize

    @property
    def short(self) -> str:
        """What it is, without the views."""
        return f"{' x '.join(map(str, self.shape))} {str(self.dtype).removeprefix('torch.')} {self.where}"


@dataclass(frozen=True)
class Choice:
    """What is kept, or nothing; and `why`."""

    kept: Kept | None
    why: str

    @property
    def row(self) -> int:
        """Bytes of a sample's features."""
        return 0 if self.kept is None else self.kept.row

    @property
    def views(self) -> int:
        """How often each sample is kept."""
        return 1 if self.kept is None else self.kept.views

    def __str__(self) -> str:
        if self.kept is None:
            return f"not kept: {self.why}"
        views = f", {self.views} views of each sample" if self.views > 1 else ""
        share = f", {self.kept.cut.share:.0%} of the work" if self.kept.cut is not None else ""
        return f"{self.kept.short}{share}{views} ({self.why})"


def against_keeping(run: Run, spec: InputSpec, *, samples: int, seen: int) -> tuple[str, int]:
    """Why the samples of a run are not the same twice, if they are not, whatever the network is; and how many views of each are
    kept otherwise.
    """
    config, augment = run.data.cache, training(run.data, spec).random is not None
    if augment and config.views is None:
        return "data.augment changes each sample anew in every epoch; data.cache.views=4 keeps four changed copies of each", 1
    if config.kind == "auto" and seen <= samples:
        return "no sample is seen twice", 1
    return "", min(config.views or 1, math.ceil(seen / samples)) if augment else 1


def choose(
    run: Run, network: nn.Module, learning: Iterable[nn.Parameter], spec: InputSpec, *, samples: int, seen: int,
    train_mode: Callable[[nn.Module], None], autocast: Callable[[], AbstractContextManager[Any]], device: torch.device,
    against: str = "",
) -> Choice:  # fmt: skip
    """Look for the cut of a run with so many training `samples`, of which it sees `seen` in all.

    `learning`: all that learns at any time. `against`: a reason from elsewhere that the images are needed, in words.
    """
    learning = set(learning)
    config = run.data.cache
    if config.kind in ("none", "decoded"):
        return Choice(None, f"data.cache is {config.kind}")
    if against:
        return Choice(None, against)
    if run.data.mix is not None:
        return Choice(None, "data.mix makes every image another mixture")
    against, views = against_keeping(run, spec, samples=samples, seen=seen)
    if against:
        return Choice(None, against)
    numbers = [(p in learning, p.numel()) for p in network.parameters()]
    if all(learns for learns, _ in numbers):
        return Choice(None, "everything learns, sooner or later")
    try:
        found = Search(network, learning, spec, train_mode, autocast, device).find(least=_PARAMETERS)
    except Exception as error:  # the network is the user's, and can be trained without this
        log.info("the network could not be followed", exc_info=True)
        return Choice(None, f"the network could not be followed ({type(error).__name__}: {error})")
    if found.cut is None:
        return Choice(None, found.why)
    cut, least = found.cut, _SHARE[config.kind]
    if cut.share < least:
        return Choice(None, f"{found.why}, and only {cut.share:.0%} of the work comes before '{cut.module}'")
    saved = cut.share * found.work * (seen - samples * views)
    if config.kind == "auto" and saved < _WORK:
        return Choice(None, "it would save no more than seconds")
    kept = Kept(f"at '{cut.module}'", cut.shape, cut.dtype, DTYPES.get(config.dtype, cut.dtype), views, cut)
    return Choice(kept, found.why)


def granted(run: Run, choice: Choice) -> Choice:
    """The choice. Raises UserError where features are asked for and cannot be kept."""
    if choice.kept is None and run.data.cache.kind == "features":
        raise UserError(f"data.cache: features, and they cannot be kept: {choice.why}; write data.cache: none, or auto")
    return choice
