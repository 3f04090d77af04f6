"""A safetensors file laid out in one block of host memory.

The training waits only for the copy of its tensors into the block; header, offsets and memory stay from one checkpoint to the
next. The format is safetensors' own (eight bytes of header length, a JSON header, the tensors), and that library reads it. Of
pieces the header's metadata say whose they are: `pieces`, JSON, has the start and the shape by name.
"""

from __future__ import annotations

import json
from collections.abc import Mapping

import torch

from trainer.spec import Piece

_NAMES = {
    torch.float64: "F64", torch.float32: "F32", torch.float16: "F16", torch.bfloat16: "BF16",
    torch.int64: "I64", torch.int32: "I32", torch.int16: "I16", torch.int8: "I8", torch.uint8: "U8", torch.bool: "BOOL",
}  # fmt: skip

Contents = Mapping[str, torch.Tensor | Piece]
Layout = tuple[tuple[str, torch.dtype, tuple[int, ...], tuple[int, ...]], ...]


def _values(given: torch.Tensor | Piece) -> torch.Tensor:
    return given.values if isinstance(given, Piece) else given


def _layout(contents: Contents) -> Layout:
    return tuple((name, _values(given).dtype, tuple(_values(given).shape), _place(given)) for name, given in contents.items())


def _place(given: torch.Tensor | Piece) -> tuple[int, ...]:
    return (given.start, *given.shape) if isinstance(given, Piece) else ()


class StagedFile:
    """Memory for the tensors, or pieces of tensors, of one layout; `copy` fills it, `data` is the file's content."""

    def __init__(self, contents: Contents) -> None:
        self.layout = _layout(contents)
        tensors = {name: _values(given) for name, given in contents.items()}
        # Wider types first, as safetensors does, so that every tensor is aligned without gaps.
        order = sorted(tensors, key=lambda name: (-tensors[name].element_size(), name))
        pieces = {name: _place(given) for name, given in contents.items() if isinstance(given, Piece)}
        metadata = {"format": "pt"} | ({"pieces": json.dumps(pieces, separators=(",", ":"))} if pieces else {})
        header: dict[str, object] = {"__metadata__": metadata}
        offset = 0
        for name in order:
            tensor = tensors[name]
            size = tensor.numel() * tensor.element_size()
            header[name] = {"dtype": _NAMES[tensor.dtype], "shape": list(tensor.shape), "data_offsets": [offset, offset + size]}
            offset += size
        text = json.dumps(header, separators=(",", ":")).encode()
        text += b" " * (-(len(text) + 8) % 64)
        start = 8 + len(text)
        pin = any(tensor.is_cuda for tensor in tensors.values())
        # zeros, not empty: the first touch of fresh memory costs more than the copy, and is paid here.
        self._memory = torch.zeros(start + offset, dtype=torch.uint8, pin_memory=pin)
        prefix = len(text).to_bytes(8, "little") + text
        self._memory[:start] = torch.frombuffer(bytearray(prefix), dtype=torch.uint8)
        self._views: dict[str, torch.Tensor] = {}
        for name in order:
            begin, end = header[name]["data_offsets"]  # type: ignore[index]
            flat = self._memory[start + begin : start + end].view(tensors[name].dtype)
            self._views[name] = flat.view(tensors[name].shape)
        self.data = memoryview(self._memory.numpy().data)

    def fits(self, contents: Contents) -> bool:
        """Whether these tensors have the names, types and shapes of this layout."""
        return _layout(contents) == self.layout

    @torch.no_grad()
    def copy(self, contents: Contents) -> None:
        """Copy the values in; for CUDA tensors the caller synchronises afterwards."""
        if not contents:
            return  # an optimizer before its first step
        views = [self._views[name] for name in contents]
        torch._foreach_copy_(views, [_values(given).detach() for given in contents.values()], non_blocking=True)

    def unsound(self) -> list[str]:
        """The names of the tensors with a value that is not a finite number."""
        return [name for name, view in self._views.items() if view.is_floating_point() and not bool(torch.isfinite(view).all())]
