"""`python:package.module:factory` and `python:path.py:factory`: a network of the user's own.

One that generates is called with noised images [n, c, h, w], their times [n] and, where it is told of classes, their numbers [n];
it gives a tensor [n, c, h, w], alone or first in a tuple, or an object with it as `sample`.
"""

from __future__ import annotations

import hashlib
import importlib
import importlib.util
import sys
import traceback
from collections.abc import Callable
from functools import partial
from pathlib import Path
from types import ModuleType
from typing import Any

from torch import nn

from trainer.config import UserError, nearest
from trainer.config.run import Model
from trainer.models.base import Need, Origin
from trainer.models.file import read_checkpoint
from trainer.models.found import call, fitted, found_parts
from trainer.models.gan import PairSource, own_pair
from trainer.models.generator import Denoiser


def origin(rest: str, config: Model) -> Origin:
    """The factory is called with `model.args`; what it returns must be a torch.nn.Module that maps images to logits."""
    make = _maker(rest, config)
    read = None if config.weights == "none" else partial(read_checkpoint, Path(config.weights))
    return Origin(
        f"python:{rest}", lambda classes, image_size: make(), sized=False, image_size=None, mean=None, std=None, read=read
    )  # fmt: skip


def denoiser(rest: str, config: Model) -> Denoiser:
    """A network that generates; its layers are found by sending noise through it. Raises UserError."""
    make = _maker(rest, config)
    read = None if config.weights == "none" else partial(read_checkpoint, Path(config.weights))
    return Denoiser(
        f"python:{rest}", lambda shape: fitted(make(), call, shape, config.adapt, f"python:{rest}"), partial(found_parts, call),
        call, channels=None, size=None, read=read,
    )  # fmt: skip


def pair(rest: str, config: Model) -> PairSource:
    """A generator and its critic. Raises UserError."""
    return own_pair(_calls(rest, config), f"python:{rest}", config)


def _maker(rest: str, config: Model) -> Callable[[], nn.Module]:
    """Calls the factory with `model.args`. Raises UserError for what is not there or gives no network."""
    call = _calls(rest, config)

    def make() -> nn.Module:
        network = call()
        if not isinstance(network, nn.Module):
            place, _, name = rest.rpartition(":")
            raise UserError(f"{place}:{name} returned a {type(network).__name__}, not a torch.nn.Module")
        return network

    return make


def _calls(rest: str, config: Model) -> Callable[[], Any]:
    """Calls the factory with `model.args`. Raises UserError for what is not there or fails."""
    place, colon, name = rest.rpartition(":")
    if not colon or not place or not name.isidentifier():
        raise UserError(f"model.source 'python:{rest}': write python:package.module:factory or python:path/to/file.py:factory")
    factory = _factory(place, name)

    def call() -> Any:
        try:
            return factory(**config.args)
        except Exception as error:
            raise UserError(f"{place}:{name}(**model.args) failed: {_told(error)}") from error

    return call


def needs(rest: str, config: Model) -> list[Need]:
    """The checkpoint, if there is one; the network's code travels with the snapshot."""
    return [] if config.weights == "none" else [Need(f"the weights of python:{rest}", Path(config.weights))]


def _factory(place: str, name: str) -> Callable[..., Any]:
    module = _from_file(Path(place)) if place.endswith(".py") or "/" in place else _from_package(place)
    factory = getattr(module, name, None)
    if not callable(factory):
        known = [n for n, value in vars(module).items() if callable(value) and not n.startswith("_")]
        raise UserError(f"{place}: has no factory '{name}'{nearest(name, known)}")
    return factory  # type: ignore[no-any-return]


def _from_package(place: str) -> ModuleType:
    try:
        return importlib.import_module(place)
    except ModuleNotFoundError as error:
        if error.name and (place == error.name or place.startswith(error.name + ".")):
            raise UserError(
                f"model.source: there is no module '{error.name}' to import '{place}' from; "
                "install it, start from its folder, or name the file: python:path/to/file.py:factory"
            ) from error
        raise UserError(f"model.source: importing '{place}' failed: {_told(error)}") from error
    except (Exception, SystemExit) as error:
        raise UserError(f"model.source: importing '{place}' failed: {_told(error)}") from error


def _from_file(path: Path) -> ModuleType:
    """Run the file as a module of its own name, so that two files called net.py do not meet; files beside it can be imported."""
    if not path.is_file():
        known = [p.name for p in path.parent.glob("*.py")] if path.parent.is_dir() else []
        raise UserError(f"{path}: no such file with a network{nearest(path.name, known)}")
    name = f"graft_network_{hashlib.sha256(str(path.resolve()).encode()).hexdigest()[:16]}"
    spec = importlib.util.spec_from_file_location(name, path)
    if spec is None or spec.loader is None:
        raise UserError(f"{path}: not a Python file; its name must end with .py")
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module  # dataclasses and pickling look the module up by name
    folder = str(path.resolve().parent)
    before = list(sys.path)
    sys.path.append(folder)
    try:
        spec.loader.exec_module(module)
    except (Exception, SystemExit) as error:
        del sys.modules[name]
        raise UserError(f"{path}: running it failed: {_told(error)}") from error
    finally:
        sys.path[:] = before
    return module


def _told(error: BaseException) -> str:
    frames = traceback.extract_tb(error.__traceback__)
    at = f" ({frames[-1].filename}:{frames[-1].lineno})" if frames else ""
    return f"{type(error).__name__}: {error}{at}"
