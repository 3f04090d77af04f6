"""Where data that has a name lies on this machine."""

from __future__ import annotations

import os
from pathlib import Path
from urllib.parse import parse_qsl, urlencode


def cache() -> Path:
    """The user's cache folder of graft."""
    return Path(os.environ.get("XDG_CACHE_HOME") or Path("~/.cache").expanduser()) / "graft"


def hub() -> Path:
    """The cache of huggingface_hub."""
    return Path(os.environ.get("HF_HUB_CACHE") or _hf() / "hub").expanduser()


def prepared() -> Path:
    """The cache of the datasets library."""
    return Path(os.environ.get("HF_DATASETS_CACHE") or _hf() / "datasets").expanduser()


def _hf() -> Path:
    home = os.environ.get("XDG_CACHE_HOME") or "~/.cache"
    return Path(os.environ.get("HF_HOME") or f"{home}/huggingface").expanduser()


def is_local(name: str, base: Path) -> bool:
    """Whether the name of an `hf:` source is a folder, or a split of one, and not a name of the hub."""
    path = base / Path(name).expanduser()
    if name.startswith(("/", "./", "../", "~")) or name in (".", "..") or path.is_dir():
        return True
    marks = ("dataset_dict.json", "dataset_info.json", "state.json")
    return path.parent != base and (
        any((path.parent / mark).is_file() for mark in marks) or next(path.parent.glob("*.parquet"), None) is not None
    )


def absolute(scheme: str, rest: str, base: Path) -> str:
    """`rest` of a source `scheme:rest` with its folder made absolute, from `base`."""
    name, question, query = rest.partition("?")
    if scheme == "hf":
        if is_local(name, base):
            name = os.path.normpath(base / Path(name).expanduser())
        return f"{name}{question}{query}"
    pairs = parse_qsl(query, keep_blank_values=True, separator="&")
    if any(key == "root" and value for key, value in pairs):
        pairs = [(k, os.path.normpath(base / Path(v).expanduser()) if k == "root" else v) for k, v in pairs]
        return f"{name}?{urlencode(pairs, safe='/:,;+')}"
    return rest
