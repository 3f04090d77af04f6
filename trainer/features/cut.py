"""The network from a cut on: what a frozen first part gives takes the place of the images."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import nn
from torch.utils import _pytree as pytree

from trainer.features.trace import Leaf

# What is worked out before the cut is worked out in vain. On the meta device that costs nothing, but does not mix with tensors of
# the network's own (position tables); one number for a whole tensor costs no memory, but cannot be changed in place.
Filler = Literal["meta", "one", "full"]
FILLERS: tuple[Filler, ...] = ("meta", "one", "full")


@dataclass(frozen=True)
class Cut:
    """Where a network is cut: at the tensor that a call of a module is given.

    `module`, `occurrence`, `place`: which call and which argument of it; `shape`, `dtype`: of one sample there; `image`: of one
    image [c, h, w]. `whole`: a module whose output is the network's and that is given the same tensor, so that calling it is all;
    none where the network's own forward has to run. `skipped`: the modules that are passed over then, each with what it gives,
    call by call, and `filler`: out of what that is made. `before`: the modules that were called when the cut is reached, and
    `around`: those that stand around it; `never`: those with tensors of their own that are not called at all. `share`: of the
    operations of a forward pass that come before.
    """

    module: str
    occurrence: int
    place: int | str
    shape: tuple[int, ...]
    dtype: torch.dtype
    image: tuple[int, ...]
    whole: str | None
    skipped: dict[str, list[Given]]
    filler: Filler
    before: tuple[str, ...]
    around: tuple[str, ...]
    never: tuple[str, ...]
    share: float


class Given:
    """What a module that is passed over gives for n images: constants as they are, all else of no value."""

    def __init__(self, two: tuple[list[Any], Any], three: tuple[list[Any], Any]) -> None:
        """From what it gave for two images and for three. ValueError where that does not say what it gives for n."""
        if two[1] != three[1]:
            raise ValueError("another structure for another number of images")
        self._structure = three[1]
        self._leaves = [_between(a, b) for a, b in zip(two[0], three[0], strict=True)]

    def __call__(self, count: int, filler: Filler, device: torch.device) -> Any:
        leaves = [leaf(count, filler, device) if isinstance(leaf, _Shape) else leaf for leaf in self._leaves]
        return pytree.tree_unflatten(leaves, self._structure)


@dataclass(frozen=True)
class _Shape:
    """A tensor each of whose sides is `base + slope * n`."""

    base: tuple[int, ...]
    slope: tuple[int, ...]
    dtype: torch.dtype

    def __call__(self, count: int, filler: Filler, device: torch.device) -> torch.Tensor:
        shape = [base + slope * count for base, slope in zip(self.base, self.slope, strict=True)]
        return nothing(shape, self.dtype, filler, device)


def nothing(shape: Sequence[int], dtype: torch.dtype, filler: Filler, device: torch.device) -> torch.Tensor:
    """A tensor without values, or with such that whatever depends on them by mistake is noticed: not a number, or the least."""
    if filler == "meta":
        return torch.empty(*shape, dtype=dtype, device="meta")
    least: float = torch.nan if dtype.is_floating_point or dtype.is_complex else 0
    if not dtype.is_floating_point and not dtype.is_complex and dtype != torch.bool:
        least = torch.iinfo(dtype).min
    if filler == "full":
        return torch.full(tuple(shape), least, dtype=dtype, device=device)
    return torch.full((), least, dtype=dtype, device=device).expand(*shape)


def _between(two: Any, three: Any) -> Any:
    if not isinstance(two, Leaf) or not isinstance(three, Leaf):
        if type(two) is not type(three) or two != three:
            raise ValueError("another value for another number of images")
        return three
    if len(two.shape) != len(three.shape) or two.dtype != three.dtype:
        raise ValueError("another kind of tensor for another number of images")
    constant = two.shape == three.shape and two.value is not None and three.value is not None
    if constant and torch.equal(two.value, three.value):  # type: ignore[arg-type]
        return three.value
    slope = tuple(b - a for a, b in zip(two.shape, three.shape, strict=True))
    return _Shape(tuple(a - 2 * s for a, s in zip(two.shape, slope, strict=True)), slope, three.dtype)


class Tail(nn.Module):
    """A network that takes features [n, …] of a cut in place of images, until it is released."""

    def __init__(self, network: nn.Module, cut: Cut) -> None:
        super().__init__()
        self.network = network
        self._features: torch.Tensor | None = None
        self._stubbed: list[tuple[nn.Module, Any]] = []
        self.cut: Cut | None = cut
        self._calls = 0
        modules = dict(self.network.named_modules())
        # in tuples: they are the network's modules, not further ones of this
        self._whole = (modules[cut.whole],) if cut.whole is not None else ()
        self._skipped = tuple((modules[name], given) for name, given in cut.skipped.items())
        hook = modules[cut.module].register_forward_pre_hook
        self._handle = hook(self._swap, prepend=True, with_kwargs=True)

    def release(self) -> None:
        """Take images from here on."""
        if self.cut is not None:
            self._handle.remove()
            self.cut = None

    def forward(self, given: torch.Tensor) -> Any:
        """What the network gives for the images that the features are of."""
        cut = self.cut
        if cut is None:
            return self.network(given)
        if self._whole:
            return self._whole[0](given)
        self._features, self._calls = given, 0
        count, device = len(given), given.device
        try:
            for module, outputs in self._skipped:
                self._stubbed.append((module, module.__dict__.get("forward")))
                module.__dict__["forward"] = _stub(iter(outputs), count, cut.filler, device)
            output = self.network(nothing([count, *cut.image], torch.float32, cut.filler, device))
            if self._features is not None:
                raise RuntimeError(f"the features did not reach '{cut.module}': the network takes another way than it did")
        finally:
            self._features = None
            self._restore()
        return output

    def _swap(self, _module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        """Hand the features over to the call that the cut is at, and let everything after it run as it is."""
        cut = self.cut
        if self._features is None or cut is None:
            return None
        self._calls += 1
        if self._calls <= cut.occurrence:
            return None
        features, self._features = self._features, None
        self._restore()
        if isinstance(cut.place, int):
            return (*args[: cut.place], features, *args[cut.place + 1 :]), kwargs
        return args, {**kwargs, cut.place: features}

    def _restore(self) -> None:
        for module, forward in self._stubbed:
            module.__dict__.pop("forward", None)
            if forward is not None:
                module.__dict__["forward"] = forward
        self._stubbed.clear()


def _stub(outputs: Iterator[Given], count: int, filler: Filler, device: torch.device) -> Callable[..., Any]:
    return lambda *args, **kwargs: next(outputs)(count, filler, device)


class _ReachedError(Exception):
    """The cut is reached; what comes after it is of no interest."""


class Prefix:
    """The network up to a cut: images [n, c, h, w] to features [n, …]."""

    def __init__(self, network: nn.Module, cut: Cut) -> None:
        self._network, self._cut = network, cut

    def __call__(self, images: torch.Tensor) -> torch.Tensor:
        with caught(self._network, self._cut) as found, suppress(_ReachedError):
            self._network(images)
        return found[0]


@contextmanager
def caught(network: nn.Module, cut: Cut, *, go_on: bool = False) -> Iterator[list[torch.Tensor]]:
    """A list that gets what is given at the cut; the pass ends there, unless it is to go on (then a copy is kept)."""
    found: list[torch.Tensor] = []
    calls = 0

    def hook(_module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        nonlocal calls
        calls += 1
        if calls != cut.occurrence + 1:
            return
        value = args[cut.place] if isinstance(cut.place, int) else kwargs[cut.place]
        found.append(value.detach().clone() if go_on else value.detach())
        if not go_on:
            raise _ReachedError

    handle = network.get_submodule(cut.module).register_forward_pre_hook(hook, prepend=True, with_kwargs=True)
    try:
        yield found
    finally:
        handle.remove()
