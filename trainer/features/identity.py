"""What features are of: the samples by their files, and everything else that decides how an image becomes numbers."""

from __future__ import annotations

import hashlib
import inspect
import json
import os
from collections.abc import Iterable
from dataclasses import asdict
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn

import trainer.data
from trainer.config import Run
from trainer.config.sources import Listing
from trainer.features.cut import Cut
from trainer.spec import InputSpec

Ids = NDArray[np.uint64]  # [rows, 2]
FORMAT = 1
# Settings of `data` that choose samples or say how they are loaded; every other one decides what an image looks like.
CHOOSING = {
    "train", "val", "classes", "per_class", "fraction", "split_seed", "min_per_class", "sampling", "workers", "augment", "mix",
    "max_bad", "cache",
}  # fmt: skip
READING = ("images.py", "transforms.py", "augment.py", "readers.py", "dataset.py")


def samples(listing: Listing) -> Ids:
    """Each sample by the file that holds it (path, size, time of its last change) and its place there."""
    root = os.path.realpath(listing.root)
    whole = listing.scheme == "digits" or bool(listing.stored)
    common = [listing.scheme, root, str(listing.how.get("image", ""))]
    if whole:
        common += [f"{file}|{_state(str(file))}" for file in listing.files()]
    places = listing.how.get("places", {})
    head = hashlib.blake2b(json.dumps(common).encode("utf-8", "surrogateescape"), digest_size=16)
    digests = []
    for item in listing.items:
        said = f"{item.key}|{places.get(item.key, '') if whole else _state(os.path.join(root, item.key))}"  # noqa: PTH118
        digest = head.copy()
        digest.update(said.encode("utf-8", "surrogateescape"))
        digests.append(digest.digest())
    return np.frombuffer(b"".join(digests), dtype="<u8").reshape(-1, 2)


def _state(path: str) -> str:
    try:
        found = os.stat(path)  # noqa: PTH116 (a million times)
    except OSError:
        return "gone"
    return f"{found.st_size}|{found.st_mtime_ns}"


def views(ids: Ids, count: int) -> Ids:
    """The ids of `count` changed copies of each sample, copy after copy: the sample's place in the list decides what is drawn."""
    n = len(ids)
    with np.errstate(over="ignore"):
        step = np.arange(1, n * count + 1, dtype=np.uint64)[:, None] * np.array(
            [0x9E3779B97F4A7C15, 0xC2B2AE3D27D4EB4F], np.uint64
        )
        mixed = np.tile(ids, (count, 1)) + step
        mixed ^= mixed >> np.uint64(31)
        return np.asarray(mixed * np.uint64(0xBF58476D1CE4E5B9))


def pixels(run: Run, spec: InputSpec, *libraries: str, random: bool, tf32: bool, device: torch.device) -> dict[str, Any]:
    """What decides the numbers of an image, and those that a device makes of them, as JSON; `random`: the images are changed by
    chance, from the run's seed; `tf32`: products of 32-bit numbers are rounded; `libraries`: further ones that compute.
    """
    data = run.data.model_dump(mode="json", exclude=CHOOSING)
    changed = {"augment": run.data.augment.model_dump(mode="json"), "seed": run.train.seed} if random else None
    return {
        "format": FORMAT,
        "image": asdict(spec),
        "data": data,
        "changed": changed,
        "tf32": tf32,
        "device": device.type,
        "versions": {name: version(name) for name in ("torch", "torchvision", "pillow", "numpy", *libraries)},
        "reading": content(Path(trainer.data.__file__).with_name(name) for name in READING),
    }


def description(
    run: Run, spec: InputSpec, cut: Cut, network: nn.Module, learning: Iterable[nn.Parameter], *, random: bool,
    dtype: torch.dtype, tf32: bool, device: torch.device,
) -> dict[str, Any]:  # fmt: skip
    """All that decides the features of a sample, as JSON."""
    return {
        **pixels(run, spec, random=random, tf32=tf32, device=device),
        "cut": [cut.module, cut.occurrence, str(cut.place), list(cut.shape), str(cut.dtype), str(dtype)],
        "weights": _weights(cut, network, set(learning)),
        "architecture": _architecture(cut, network),
        "arguments": run.model.args,
        "precision": run.train.precision,
    }


def key_of(described: dict[str, Any]) -> str:
    """The name of the folder."""
    return hashlib.sha256(json.dumps(described, sort_keys=True).encode()).hexdigest()[:32]


def _weights(cut: Cut, network: nn.Module, learning: set[nn.Parameter]) -> str:
    """A sha256 of the tensors that may have a part in the features.

    Those of the modules that were called before the cut, with all that is in them; those that stand directly in the modules
    around it; and those that are never called at all, which may be read where they stand.
    """
    inside = (*cut.before, *cut.never)
    digest = hashlib.sha256()
    named = [*network.named_parameters(remove_duplicate=False), *network.named_buffers(remove_duplicate=False)]
    for name, value in sorted(named, key=lambda item: item[0]):
        owner = name.rpartition(".")[0]
        if value in learning or not (owner in cut.around or any(owner == m or owner.startswith(f"{m}.") for m in inside)):
            continue
        digest.update(f"{name} {value.dtype} {list(value.shape)}".encode())
        digest.update(value.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy().data)
    return digest.hexdigest()


def _architecture(cut: Cut, network: nn.Module) -> str:
    """A sha256 of the modules up to the cut: their classes, what they say of themselves, and the files they are written in."""
    digest, files = hashlib.sha256(), dict[str, None]()
    for name in (*cut.around, *cut.before):
        module = network.get_submodule(name)
        kind = type(module)
        digest.update(f"{name}|{kind.__module__}.{kind.__qualname__}|{module.extra_repr()}\n".encode())
        for base in kind.__mro__:
            if base.__module__.partition(".")[0] not in ("torch", "builtins"):
                try:
                    files[inspect.getsourcefile(base) or base.__qualname__] = None
                except (TypeError, OSError):
                    files[base.__qualname__] = None
    digest.update(content(Path(file) for file in sorted(files)).encode())
    return digest.hexdigest()


def content(paths: Iterable[Path]) -> str:
    """A sha256 of what files hold; of one that cannot be read its path counts."""
    digest = hashlib.sha256()
    for path in paths:
        try:
            digest.update(hashlib.sha256(path.read_bytes()).digest())
        except OSError:
            digest.update(str(path).encode())
    return digest.hexdigest()
