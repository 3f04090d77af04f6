"""Columns of Arrow and Parquet files as the datasets library writes them, through pyarrow alone."""

from __future__ import annotations

import hashlib
import json
import os
from bisect import bisect_right
from dataclasses import dataclass
from itertools import accumulate
from pathlib import Path
from typing import Any

from trainer.config.errors import UserError, nearest
from trainer.config.formats import places


def schema(path: Path) -> tuple[list[str], dict[str, Any]]:
    """(names of the columns, the datasets library's features by column, if they are recorded). Raises UserError."""
    found = _parquet(path).schema_arrow if path.suffix == ".parquet" else _table(path).schema
    said = json.loads((found.metadata or {}).get(b"huggingface", b"{}"))
    return list(found.names), said.get("info", {}).get("features") or {}


def column(path: Path, name: str) -> list[Any]:
    """The values of a column. Raises UserError."""
    import pyarrow

    try:
        if path.suffix == ".parquet":
            return list(_parquet(path).read([name], use_threads=False).column(0).to_pylist())
        return list(_table(path).column(name).to_pylist())
    except KeyError:
        raise UserError(f"{path}: no column '{name}'{nearest(name, schema(path)[0])}") from None
    except (pyarrow.ArrowException, OSError) as error:
        raise UserError(f"{path}: cannot be read, damaged or truncated: {error}") from None


@dataclass(frozen=True)
class Images:
    """The image column of a file: its chunks, and the row that each begins at."""

    starts: list[int]
    chunks: list[Any]


def images(path: Path, name: str) -> Images:
    """Map the image column; a Parquet file, which is compressed in blocks of many rows, is unpacked once into the user's cache.

    Raises UserError.
    """
    chunks = _table(_unpacked(path, name) if path.suffix == ".parquet" else path).column(name).chunks
    return Images([0, *accumulate(len(chunk) for chunk in chunks)], chunks)


def image(found: Images, row: int) -> tuple[bytes | None, str | None]:
    """(encoded bytes, path of a file) of a row's image, each if it has it. Raises IndexError."""
    if not 0 <= row < found.starts[-1]:
        raise IndexError(f"there are {found.starts[-1]} rows")
    place = bisect_right(found.starts, row) - 1
    value = found.chunks[place][row - found.starts[place]].as_py()
    if isinstance(value, dict):
        return value.get("bytes"), value.get("path")
    return (value, None) if isinstance(value, bytes) else (None, value)


def _table(path: Path) -> Any:
    import pyarrow

    try:
        mapped = pyarrow.memory_map(os.fspath(path))
        try:
            return pyarrow.ipc.open_stream(mapped).read_all()
        except pyarrow.ArrowInvalid:
            mapped.seek(0)
            return pyarrow.ipc.open_file(mapped).read_all()
    except (pyarrow.ArrowException, OSError) as error:
        raise UserError(f"{path}: no readable Arrow file, damaged or truncated: {error}") from None


def _parquet(path: Path) -> Any:
    import pyarrow
    from pyarrow import parquet

    try:
        return parquet.ParquetFile(os.fspath(path), memory_map=True)
    except (pyarrow.ArrowException, OSError) as error:
        raise UserError(f"{path}: no readable Parquet file, damaged or truncated: {error}") from None


def _unpacked(path: Path, name: str) -> Path:
    """The image column as an Arrow file in the cache, keyed by the file's place, size and time."""
    import pyarrow

    real = path.resolve()
    info = real.stat()
    digest = hashlib.sha256(f"{real}|{info.st_size}|{info.st_mtime_ns}|{name}".encode("utf-8", "surrogateescape")).hexdigest()
    target = places.cache() / "arrow" / f"{digest[:32]}.arrow"
    if not target.is_file():
        temporary = target.with_suffix(f".{os.getpid()}.tmp")
        try:
            target.parent.mkdir(parents=True, exist_ok=True)
            file = _parquet(path)
            kept = pyarrow.schema([file.schema_arrow.field(name)])
            with pyarrow.OSFile(os.fspath(temporary), "wb") as sink, pyarrow.ipc.new_stream(sink, kept) as out:
                for batch in file.iter_batches(64, columns=[name], use_threads=False):
                    out.write_batch(batch.cast(kept) if batch.schema != kept else batch)
            temporary.replace(target)
        except (pyarrow.ArrowException, OSError) as error:
            raise UserError(f"{path}: cannot be unpacked into {target.parent}: {error}") from None
        finally:
            temporary.unlink(missing_ok=True)
    return target
