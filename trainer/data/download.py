"""Data sets that have a name are brought into the local caches; only `graft fetch` does that."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from trainer.config.errors import UserError
from trainer.config.formats import places
from trainer.config.sources import hf
from trainer.config.sources import torchvision as source_of


def bring(source: str) -> None:
    """Download a `torchvision:` or `hf:` data set that is not here yet; other sources are left alone. Raises UserError."""
    scheme, _, rest = source.partition(":")
    if scheme == "torchvision":
        _torchvision(rest)
    elif scheme == "hf" and not places.is_local(rest.partition("?")[0], Path()):
        _hub(rest)


def _torchvision(rest: str) -> None:
    try:
        source_of.listing(rest)
        return
    except UserError as error:
        if "is not there" not in str(error):
            raise
    import torchvision.datasets

    name, root, split, part = source_of.parse(rest)
    options: dict[str, Any] = {"split": split}
    if name in ("MNIST", "FashionMNIST", "KMNIST", "CIFAR10", "CIFAR100", "USPS", "EMNIST"):
        options = {"train": split == "train"}
    elif name in ("EuroSAT", "Caltech101", "Caltech256"):
        options = {}
    if name == "EMNIST":
        options["split"] = part
    elif name == "DTD":
        options["partition"] = int(part)
    try:
        root.mkdir(parents=True, exist_ok=True)
        getattr(torchvision.datasets, name)(str(root), download=True, **options)
    except Exception as error:  # torchvision raises RuntimeError, URLError and more
        raise UserError(
            f"torchvision:{name} could not be fetched into {root}: {error}; run it where there is a network"
        ) from error


def _hub(rest: str) -> None:
    try:
        hf.listing(rest)
        return
    except UserError as error:
        if "not in the local caches" not in str(error):
            raise
    from huggingface_hub import snapshot_download

    name = "/".join(rest.partition("?")[0].split("/")[:2])
    try:
        for revision in ("main", "refs/convert/parquet"):
            path = snapshot_download(name, repo_type="dataset", revision=revision, allow_patterns=["*.parquet"])
            if next(Path(path).rglob("*.parquet"), None) is not None:
                return
    except Exception as error:  # of the hub's client, or of the network below it
        raise UserError(f"hf:{name} could not be fetched: {error}; run it where there is a network") from error
    raise UserError(f"hf:{name}: the hub has no Parquet files of it; save it with save_to_disk and write hf:FOLDER")
