"""Finds where a network can be cut: the deepest place before which nothing learns, draws or depends on the batch."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterable, Iterator
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import nn
from torch.utils import _pytree as pytree
from torch.utils.flop_counter import FlopCounterMode

from trainer.features.cut import FILLERS, Cut, Given, Tail, caught
from trainer.features.trace import Call, Key, Trace, record, undisturbed
from trainer.spec import InputSpec

Autocast = Callable[[], AbstractContextManager[Any]]
_KEEP = 256 << 20  # bytes of tensors that are kept to try cuts with
_TRIES = 200


@dataclass(frozen=True)
class Found:
    """A cut, or none; `why` says what comes at it (it learns, it draws …), and `work` the operations of a pass for one image."""

    cut: Cut | None
    why: str
    work: int = 0


class Search:
    """Looks for the cut of one network.

    `learning`: all parameters that learn at any time; `train_mode` puts the network into the mode in which it is trained;
    `autocast` is the precision that it is called in. Nothing of the network is changed.
    """

    def __init__(
        self, network: nn.Module, learning: Iterable[nn.Parameter], spec: InputSpec, train_mode: Callable[[nn.Module], None],
        autocast: Autocast, device: torch.device,
    ) -> None:  # fmt: skip
        self._network, self._train_mode, self._autocast, self._device = network, train_mode, autocast, device
        self._learning = set(learning)
        self._image = (spec.in_channels, spec.image_size, spec.image_size)
        images = torch.randn(3, *self._image, generator=torch.Generator().manual_seed(0))
        self._images = images.to(device)
        with autocast():
            mixed = torch.is_autocast_enabled(device.type)
        # sums of products are rounded, in another way for another batch
        self._near = 0.05 if mixed or next(network.parameters()).dtype != torch.float32 else 1e-3

    def find(self, least: float = 0.0) -> Found:
        """The deepest cut that holds; not looked for where less than `least` of all parameters come before it."""
        with undisturbed(self._network, self._device), self._all_learn():
            self._train_mode(self._network)
            with self._autocast():
                training = record(self._network, self._images[:2], until_active=True)
            early = self._early(training, least)
            if early:
                return Found(None, early)
            candidates = {call.key: call for call in training.calls if call.shape[:1] == (2,) and call.place is not None}
            kept: deque[tuple[Key, torch.Tensor]] = deque()
            held = 0

            def keep(call: Call, given: torch.Tensor | None) -> None:
                nonlocal held
                if call.key in candidates and given is not None and given.shape[:1] == (3,) and call.work:
                    kept.append((call.key, given.detach().clone()))
                    held += given.nbytes
                    while held > _KEEP and len(kept) > 1:
                        held -= kept.popleft()[1].nbytes

            self._network.eval()
            counter = FlopCounterMode(display=False)
            with torch.no_grad(), self._autocast(), counter:
                still = record(self._network, self._images, until_active=False, work=counter.get_total_flops, look=keep)
            return self._deepest(training, still, dict(kept), training.stopped)

    def _early(self, training: Trace, least: float) -> str:
        """That hardly anything comes before what is not the same in every epoch; empty where there is enough."""
        called = {call.module for call in training.calls}
        before = {p for module in called for p in module.parameters(recurse=False)} - self._learning
        share = sum(p.numel() for p in before) / max(1, sum(p.numel() for p in self._network.parameters()))
        what = "nothing" if not before else f"only {share:.2%} of the parameters"
        return f"{training.stopped}, and {what} comes before it" if share < least or not before else ""

    @contextmanager
    def _all_learn(self) -> Iterator[None]:
        """Also what begins to learn later takes a gradient inside."""
        before = [(p, p.requires_grad) for p in self._network.parameters()]
        try:
            for p, _ in before:
                p.requires_grad_(p in self._learning)
            yield
        finally:
            for p, was in before:
                p.requires_grad_(was)

    def _deepest(self, training: Trace, still: Trace, kept: dict[Key, torch.Tensor], why: str) -> Found:
        moving, resting, work = training.by_key(), still.by_key(), still.work // 3
        fit: list[Key] = []
        for call in training.calls:
            other = resting.get(call.key)
            if other is None or call.shape[:1] != (2,) or other.shape[:1] != (3,):
                continue
            if abs(call.size - other.size) > self._near * abs(other.size) + 1e-12:
                last = next((c.key[0] for c in reversed(training.calls[: call.index]) if c.output is not None), "")
                why = f"'{last}' gives something else in training than in evaluation, or looks at the rest of the batch"
                break
            if call.key in kept and call.shape[1:] == other.shape[1:] and call.place == other.place:
                fit.append(call.key)
        for key in list(reversed(fit))[:_TRIES]:
            call = resting[key]
            cut = self._cut(call, moving, still)
            if cut is None:
                continue
            first = next((c for filler in FILLERS if self._holds_still(c := replace(cut, filler=filler), kept[key])), None)
            if first is not None and (found := self._holds(first, _same(call, still))) is not None:
                return Found(found, why, work)
        return Found(None, f"{why}, and there is no one place before it that all that comes after it begins at", work)

    def _cut(self, call: Call, moving: dict[Key, Call], still: Trace) -> Cut | None:
        """The cut at a call, which was not tried yet; none where it is plain that it does not hold."""
        around = list(still.around(call))
        path = {c.index for c in around}
        if any(c.module is call.module for c in around) or call.place is None or call.dtype is None:
            return None
        skipped: dict[str, list[Given]] = {}
        for other in still.calls[: call.index]:
            if other.index in path or other.parent not in path:
                continue
            seen = moving.get(other.key)
            if seen is None or seen.output is None or other.output is None:
                return None
            try:
                skipped.setdefault(other.key[0], []).append(Given(seen.output, other.output))
            except ValueError:
                return None
        if any(c.key[0] in skipped for c in around):
            return None
        before = dict.fromkeys(c.key[0] for c in still.calls[: call.index] if c.index not in path)
        return Cut(
            call.key[0], call.key[1], call.place, call.shape[1:], call.dtype, self._image, None, skipped, FILLERS[0],
            tuple(before), tuple(c.key[0] for c in around), self._never(moving, still), call.work / max(1, still.work),
        )  # fmt: skip

    def _never(self, moving: dict[Key, Call], still: Trace) -> tuple[str, ...]:
        called = {name for name, _ in moving} | {call.key[0] for call in still.calls}
        named = [*self._network.named_parameters(), *self._network.named_buffers()]
        return tuple(dict.fromkeys(owner for name, _ in named if (owner := name.rpartition(".")[0]) not in called))

    def _holds_still(self, cut: Cut, features: torch.Tensor) -> bool:
        """A first look, in evaluation: whether the features are all that matters."""
        output = self._tail(cut, features, training=False)
        return output is not None and not any(leaf.is_meta or bool(leaf.isnan().any()) for leaf in _tensors(output))

    def _tail(self, cut: Cut, features: torch.Tensor, *, training: bool) -> Any:
        tail = Tail(self._network, cut)
        try:
            with self._quiet(training):
                return self._moved(tail(features)) if training else tail(features)
        except Exception:  # the network is the user's: whatever it does without images, it cannot be cut here
            return None
        finally:
            tail.release()

    @contextmanager
    def _quiet(self, training: bool) -> Iterator[None]:
        """The network in training or in evaluation, about to draw the same numbers; afterwards it is as before."""
        with undisturbed(self._network, self._device), torch.set_grad_enabled(training), self._autocast():
            if training:
                self._train_mode(self._network)
            else:
                self._network.eval()
            torch.default_generator.manual_seed(1)
            if self._device.type == "cuda":
                torch.cuda.default_generators[self._device.index or 0].manual_seed(1)
            yield

    def _holds(self, cut: Cut, same: list[str]) -> Cut | None:
        """Whether the network from the cut on gives what the whole gives, in training and in evaluation.

        `same`: the modules that are given just what is at the cut. Returns the cut with `whole`, where the output of one of them
        is the network's own.
        """
        given, wanted, wholes = list[Any](), list[Any](), list[Any]()
        for training in (True, False):
            for into, value in zip((given, wanted, wholes), self._pass(cut, same, training), strict=True):
                into.append(value)
        if not _close(given[0], given[1], self._near):
            return None
        whole = next((name for name in reversed(same) if all(name in names for names in wholes)), None)
        for option in dict.fromkeys((whole, None)):
            cut = replace(cut, whole=option)
            if all(self._agrees(cut, *case) for case in zip((True, False), given, wanted, strict=True)):
                return cut
        return None

    def _pass(self, cut: Cut, names: list[str], training: bool) -> tuple[torch.Tensor, Any, set[str]]:
        """(features, what the network gives, those of these modules whose output that is)."""
        outputs: dict[str, Any] = {}

        def keep(name: str) -> Callable[..., None]:
            return lambda module, args, output: outputs.__setitem__(name, output)

        handles = [self._network.get_submodule(name).register_forward_hook(keep(name)) for name in names]
        try:
            with self._quiet(training), caught(self._network, cut, go_on=True) as found:
                output = self._network(self._images)
                wholes = {name for name, value in outputs.items() if value is output}
                return found[0], self._moved(output) if training else output, wholes
        finally:
            for handle in handles:
                handle.remove()

    def _moved(self, output: Any) -> list[torch.Tensor]:
        """An output in training, and the gradients that what learns gets from it."""
        leaves = _tensors(output)
        total = torch.stack([leaf.float().square().sum() for leaf in leaves if leaf.requires_grad]).sum()
        learning = [p for p in self._network.parameters() if p.requires_grad]
        gradients = torch.autograd.grad(total, learning, allow_unused=True)
        return [leaf.detach() for leaf in leaves] + [torch.zeros(1) if g is None else g for g in gradients]

    def _agrees(self, cut: Cut, training: bool, features: torch.Tensor, wanted: Any) -> bool:
        output = self._tail(cut, features, training=training)
        ours, theirs = _tensors(output), _tensors(wanted)
        exact = self._device.type == "cpu"
        return len(ours) == len(theirs) > 0 and all(
            torch.equal(a, b) if exact else _close(a, b, self._near) for a, b in zip(ours, theirs, strict=True)
        )


def _same(call: Call, still: Trace) -> list[str]:
    """The module of a call and those around it that were given the very same tensor, from the inside."""
    found = [call.key[0]]
    for outer in still.around(call):
        if not call.same:
            break
        found.append(outer.key[0])
        call = outer
    return found


def _tensors(output: Any) -> list[torch.Tensor]:
    return [leaf for leaf in pytree.tree_leaves(output) if isinstance(leaf, torch.Tensor)]


def _close(a: torch.Tensor, b: torch.Tensor, near: float) -> bool:
    """Equal up to rounding, which follows the largest number."""
    if a.shape != b.shape:
        return False
    a, b = a.double(), b.double()
    return bool((a - b).abs().max() <= near * b.abs().max() + 1e-12) if a.numel() else True
