"""Reads the tensors of a checkpoint file, and nothing else that such a file may hold."""

from __future__ import annotations

import json
import re
import warnings
import zipfile
from collections.abc import Mapping
from pathlib import Path
from pickle import UnpicklingError
from typing import Any

import torch
from safetensors import SafetensorError, safe_open

from trainer.config import UserError, nearest
from trainer.models.base import Checkpoint, first_few

SUFFIXES = (".safetensors", ".pt", ".pth", ".th", ".bin")
_WRAPPERS = ("state_dict", "model_state_dict", "model")
_REFUSED = re.compile(r"(?:GLOBAL|[Uu]nsupported (?:global|class))[: ]+(?:GLOBAL )?([A-Za-z_][\w.]*)")


def read_checkpoint(path: Path) -> Checkpoint:
    """The tensors of a `.safetensors` file or of a pickle (`.pt`, `.pth`, `.th`, `.bin`; read with weights_only: no code runs).

    A mapping under `state_dict`, `model_state_dict` or `model` is unwrapped, the prefixes that DataParallel (`module.`) and
    torch.compile (`_orig_mod.`) add are taken off. A safetensors file may name its classes (metadata `classes`, a JSON list).
    Raises UserError for a file that is missing, damaged or holds anything else.
    """
    if path.suffix.lower() not in SUFFIXES:
        raise UserError(f"{path}: weights are read from {', '.join(SUFFIXES)} files, not from '{path.name}'")
    if not path.is_file():
        near = nearest(path.name, [p.name for p in path.parent.iterdir() if p.suffix in SUFFIXES]) if path.parent.is_dir() else ""
        raise UserError(f"{path}: no such weights file{near}")
    try:
        if path.suffix.lower() == ".safetensors":
            return _safetensors(path)
        content = _pickle(path)
    except OSError as error:
        raise UserError(f"{path}: cannot be read: {error}") from error
    return Checkpoint(str(path), _tensors(content, path))


def _safetensors(path: Path) -> Checkpoint:
    try:
        with safe_open(path, framework="pt", device="cpu") as file:
            metadata = file.metadata() or {}
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 (not a dict)
    except SafetensorError as error:
        raise UserError(f"{path}: damaged or not a safetensors file ({error}); copy or download it again") from error
    classes: tuple[str, ...] | None = None
    if "classes" in metadata:
        try:
            names = json.loads(metadata["classes"])
        except ValueError:
            names = None
        if not isinstance(names, list) or not all(isinstance(name, str) for name in names):
            raise UserError(f"{path}: its metadata 'classes' is not a JSON list of names")
        classes = tuple(names)
    return Checkpoint(str(path), _tensors(tensors, path), classes)


def _pickle(path: Path) -> Any:
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # about old formats, which the user can do nothing about
            return torch.load(path, map_location="cpu", weights_only=True, mmap=zipfile.is_zipfile(path))
    except OSError:
        raise
    except Exception as error:  # a damaged pickle raises almost anything
        # torch's own text advises weights_only=False, which is the one thing not to do; the reason is in what it wraps.
        wrapped = error.__context__ if isinstance(error, UnpicklingError) and error.__context__ else error
        text = " ".join(str(wrapped).split()) or type(error).__name__
        asked = _REFUSED.search(text)
        old = "TorchScript" if "TorchScript" in text else "legacy .tar" if "legacy .tar" in text else ""
        if asked or old:
            what = f"it asks for {asked[1]}" if asked else f"it is in the {old} format, which can hold a program"
            raise UserError(
                f"{path}: refused, nothing in it was run: {what}, which is more than tensors; "
                "where you trust it, load it with the program that wrote it and save only its state_dict()"
            ) from error
        raise UserError(
            f"{path}: damaged or not a file of tensors ({text[:150]}), nothing in it was run; copy or download it again"
        ) from error


def _tensors(content: Any, path: Path) -> dict[str, torch.Tensor]:
    while isinstance(content, Mapping):
        inner = next((content[key] for key in _WRAPPERS if isinstance(content.get(key), Mapping)), None)
        if inner is None:
            break
        content = inner
    if not isinstance(content, Mapping):
        raise UserError(f"{path}: holds a {type(content).__name__}, not tensors by name; save the network's state_dict()")
    others = [f"{name} ({type(value).__name__})" for name, value in content.items() if not isinstance(value, torch.Tensor)]
    if others or not content or not all(isinstance(name, str) for name in content):
        what = f"also holds {first_few(others)}" if others else "holds no tensors by name"
        raise UserError(f"{path}: {what}; save the network's state_dict(), alone or under the key 'state_dict'")
    tensors = {name.replace("_orig_mod.", ""): value for name, value in content.items()}
    while all(name.startswith("module.") for name in tensors):
        tensors = {name.removeprefix("module."): value for name, value in tensors.items()}
    odd = [name for name, value in tensors.items() if value.layout != torch.strided or value.is_quantized]
    if odd:
        raise UserError(f"{path}: sparse or quantized tensors are not supported: {first_few(odd)}")
    return tensors
