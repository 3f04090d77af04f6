"""Data sets that lie in arrays, as torchvision downloads them: labels, and pixels as uint8 [n, h, w] or [n, h, w, 3].

Nothing in a file is executed: CIFAR's pickles are read by an unpickler that can make arrays and plain values only.
"""

from __future__ import annotations

import bz2
import gzip
import pickle
from collections.abc import Callable
from pathlib import Path
from typing import IO, Any

import numpy as np
from numpy.typing import NDArray

from trainer.config.errors import UserError

Array = NDArray[np.uint8]
_ALLOWED = {
    ("numpy", "ndarray"), ("numpy", "dtype"), ("_codecs", "encode"),
    *((module, name) for module in ("numpy.core.multiarray", "numpy._core.multiarray") for name in ("_reconstruct", "scalar")),
}  # fmt: skip


def idx(path: Path) -> Array:
    """An IDX file of unsigned bytes (LeCun), plain or as path.gz. Raises UserError."""
    plain = path.is_file()
    try:
        with path.open("rb") if plain else gzip.open(f"{path}.gz", "rb") as file:
            head = file.read(4)
            if head[:3] != b"\0\0\x08":
                raise UserError(f"{path}: no IDX file of bytes")
            shape = tuple(int.from_bytes(file.read(4), "big") for _ in range(head[3]))
            data = np.frombuffer(file.read(), dtype=np.uint8)
    except (OSError, EOFError) as error:
        raise UserError(f"{path}: cannot be read: {error}") from None
    return _shaped(path, data, shape)


def _shaped(path: Path, data: Array, shape: tuple[int, ...]) -> Array:
    if data.size != int(np.prod(shape)):
        raise UserError(f"{path}: truncated or damaged: {data.size:,} bytes for {' x '.join(map(str, shape))} values")
    return data.reshape(shape)


def binary(path: Path, shape: tuple[int, ...]) -> Array:
    """A file of bytes alone, as many as fit whole rows of `shape`. Raises UserError."""
    data = _from(path, lambda: np.fromfile(path, dtype=np.uint8))
    return _shaped(path, data, (data.size // int(np.prod(shape)), *shape))


def mat(path: Path) -> dict[str, Any]:
    """A MATLAB 5 file. Raises UserError."""
    from scipy import io

    return dict(_from(path, lambda: io.loadmat(str(path))))


def cifar(path: Path) -> dict[str, Any]:
    """A batch, or the names, of CIFAR's python version. Raises UserError."""
    with _from(path, lambda: path.open("rb")) as file:
        return dict(_from(path, lambda: _Plain(file, encoding="latin1").load()))


def usps(path: Path) -> tuple[Array, Array]:
    """(pixels [n, 16, 16], labels [n]) of a file in the libsvm format, values -1 to 1."""
    text = _from(path, lambda: bz2.decompress(path.read_bytes()).decode())
    rows = [line.split() for line in text.splitlines() if line.strip()]
    values = np.asarray([[x.partition(":")[2] for x in row[1:]] for row in rows], dtype=np.float32).reshape(-1, 16, 16)
    pixels = ((values + 1) / 2 * 255).astype(np.uint8)
    return pixels, np.array([int(float(row[0])) - 1 for row in rows], dtype=np.uint8)


class _Plain(pickle.Unpickler):
    def __init__(self, file: IO[bytes], *, encoding: str) -> None:
        super().__init__(file, encoding=encoding)

    def find_class(self, module: str, name: str) -> Any:
        if (module, name) not in _ALLOWED:
            raise pickle.UnpicklingError(f"it would run {module}.{name}")
        return super().find_class(module, name)


def _from(path: Path, read: Callable[[], Any]) -> Any:
    try:
        return read()
    except Exception as error:  # readers of foreign formats raise nearly anything at damage
        raise UserError(f"{path}: cannot be read, damaged or truncated: {error}") from None
