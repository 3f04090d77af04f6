"""Counts the bytes that tensors hold while a program runs on tensors without values."""

from __future__ import annotations

import weakref
from collections import Counter
from collections.abc import Iterable
from typing import Any

import torch
from torch._subclasses.fake_tensor import FakeTensor, FakeTensorMode
from torch.utils import _pytree as pytree
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.weak import WeakIdKeyDictionary

from trainer.kernels import within

_ROUND = 512  # bytes: what CUDA's allocator rounds to
WORK, GRADIENTS = "work", "gradients"


def without_values() -> FakeTensorMode:
    """Where tensors have shapes and no values; one for all ledgers of a network, since tensors of two do not mix."""
    return FakeTensorMode(allow_non_fake_inputs=True)


class Peak:
    """The most bytes that were seen, and what they were made of."""

    def __init__(self) -> None:
        self.bytes, self.parts = 0, Counter[str]()

    def see(self, total: int, parts: Counter[str], within: int) -> None:
        """Look at what there is now, `within` of it in the operation under way."""
        if total > self.bytes:
            self.bytes, self.parts = total, parts + Counter({WORK: within})


class Ledger(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """Runs the operations within it without doing them, and keeps the books of the storages that they make and let go.

    Shapes, kinds and what autograd saves are torch's own, from its FakeTensorMode: only values are missing, and where one is
    asked for it is 1. Tensors that were there before are entered with `enter`; one that was not, and is met, counts as `other`.
    With `gpu` sizes are as CUDA's allocator rounds them, and what an operation takes within itself and gives back before it
    ends (workspaces of convolutions) is not seen; on a CPU it is, as far as `trainer.kernels` knows it.
    """

    def __init__(self, values: FakeTensorMode, *, gpu: bool) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self._values, self._gpu = values, gpu
        self._known: dict[int, tuple[weakref.ref[Any], int]] = {}  # by storage, with its bytes
        self._part: dict[int, str] = {}
        self._stands: Any = WeakIdKeyDictionary()  # what stands for a tensor that has values, as long as that is there
        self._hooks: list[Any] = []
        self.now: Counter[str] = Counter()  # bytes by part; what operations made is `work`
        self.peak, self.apart = Peak(), Peak()  # of everything, and of everything but the gradients

    def __enter__(self) -> Ledger:
        self._values.__enter__()
        super().__enter__()  # type: ignore[no-untyped-call]
        return self

    def __exit__(self, *about: Any) -> None:
        super().__exit__(*about)  # type: ignore[no-untyped-call]
        self._values.__exit__(*about)
        for hook in self._hooks:
            hook.remove()

    def again(self) -> None:
        """Look for the peak from here on."""
        self.peak, self.apart = Peak(), Peak()
        self._look()

    def enter(self, part: str, tensors: Iterable[torch.Tensor]) -> None:
        """Tensors that are there for good; one that is in the books already is not counted again, but belongs here now."""
        for tensor in tensors:
            fake = self._taken(tensor)
            key = self._count(part, fake)
            if self._part[key] != part:
                self._move(key, part)

    def watch(self, parameters: Iterable[torch.Tensor]) -> None:
        """Tell the gradients of these from other work."""
        for parameter in parameters:
            self._hooks.append(parameter.register_post_accumulate_grad_hook(self._graded))  # type: ignore[no-untyped-call]

    def _graded(self, parameter: torch.Tensor) -> None:
        if parameter.grad is not None:
            self.enter(GRADIENTS, [parameter.grad])

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func is torch.ops.aten._local_scalar_dense.default:
            return _one(args[0].dtype)
        args, kwargs = pytree.tree_map_only(torch.Tensor, self._met, (args, kwargs or {}))
        if not self._gpu and (more := within(func, args)):
            self._look(more)
        result = func(*args, **kwargs)
        for value in pytree.tree_leaves(result):
            if isinstance(value, FakeTensor):
                self._count(WORK, value)
        return result

    def _met(self, tensor: torch.Tensor) -> torch.Tensor:
        fake = self._taken(tensor)
        self._count("other", fake)
        return fake

    def _taken(self, tensor: torch.Tensor) -> torch.Tensor:
        """What stands for a tensor that has values."""
        if isinstance(tensor, FakeTensor):
            return tensor
        fake: torch.Tensor | None = self._stands.get(tensor)
        if fake is None:
            fake = self._stands[tensor] = self._values.fake_tensor_converter.from_real_tensor(self._values, tensor)
        return fake

    def _count(self, part: str, tensor: torch.Tensor) -> int:
        """Enter a tensor's storage, unless it is known; its key."""
        storage = tensor.untyped_storage()
        key = id(storage)
        known = self._known.get(key)
        if known is None or known[0]() is not storage:
            size = int(storage.nbytes())
            size = -(-size // _ROUND) * _ROUND if self._gpu else size
            self._known[key], self._part[key] = (weakref.ref(storage), size), part
            weakref.finalize(storage, self._gone, key).atexit = False
            self.now[part] += size
            self._look()
        return key

    def _move(self, key: int, part: str) -> None:
        size = self._known[key][1]
        self.now[self._part[key]] -= size
        self.now[part] += size
        self._part[key] = part

    def _gone(self, key: int) -> None:
        known = self._known.get(key)
        if known is not None and known[0]() is None:
            self.now[self._part.pop(key)] -= known[1]
            del self._known[key]

    def _look(self, more: int = 0) -> None:
        """See whether there never was so much, with so many bytes within an operation."""
        total = self.now.total() + more
        self.peak.see(total, self.now, more)
        self.apart.see(total - self.now[GRADIENTS], self.now, more)


def _one(dtype: torch.dtype) -> float:
    """What a tensor without a value has for one: counters of steps, norms and scales are positive."""
    return True if dtype == torch.bool else 1.0 if dtype.is_floating_point else 1
