"""Every data set of torchvision that is read from its files, beside torchvision's own reading of the same files."""

from __future__ import annotations

import bz2
import pickle
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import scipy.io
from PIL import Image
from torchvision import datasets

from tests.unit.test_data_sources import RNG, idx, pixels
from trainer.config.sources import open_source
from trainer.config.sources.torchvision import SPLITS


def picture(path: Path) -> None:
    """A small photograph of noise, in the format of its name."""
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(RNG.integers(0, 256, (9, 11, 3), dtype=np.uint8)).save(path)


def text(path: Path, *lines: str) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("\n".join(lines) + "\n")


def trees(folder: str, *names: str, ending: str = "jpg") -> Callable[[Path], None]:
    def make(root: Path) -> None:
        for number, name in enumerate(names):
            for image in range(1, 3 + number):
                picture(root / folder / name / f"image_{image:04d}.{ending}")

    return make


def caltech256(root: Path) -> None:
    for number, name in ((1, "ak47"), (2, "american-flag"), (3, "backpack")):
        for image in (1, 2):
            picture(root / "caltech256" / "256_ObjectCategories" / f"{number:03d}.{name}" / f"{number:03d}_{image:04d}.jpg")


def food(root: Path) -> None:
    base = root / "food-101"
    for split, numbers in (("train", (1, 2)), ("test", (3,))):
        found = {name: [f"{name}/{n}" for n in numbers] for name in ("apple_pie", "waffles", "baklava")}
        for images in found.values():
            for image in images:
                picture(base / "images" / f"{image}.jpg")
        text(base / "meta" / f"{split}.txt", *[image for images in found.values() for image in images])
        (base / "meta" / f"{split}.json").write_text(str(found).replace("'", '"'))


def pets(root: Path) -> None:
    base = root / "oxford-iiit-pet"
    rows = ["Abyssinian_1 1 1 1", "american_bulldog_7 2 2 1", "Abyssinian_2 1 1 1", "yorkshire_terrier_3 3 2 2"]
    for split in ("trainval", "test"):
        text(base / "annotations" / f"{split}.txt", *rows)
    for row in rows:
        picture(base / "images" / f"{row.split()[0]}.jpg")


def textures(root: Path) -> None:
    base = root / "dtd" / "dtd"
    rows = ["banded/banded_1.jpg", "dotted/dotted_2.jpg", "banded/banded_3.jpg", "woven/woven_4.jpg"]
    for split in ("train", "val", "test"):
        text(base / "labels" / f"{split}1.txt", *rows)
    for row in rows:
        picture(base / "images" / row)


def aircraft(root: Path) -> None:
    base = root / "fgvc-aircraft-2013b" / "data"
    text(base / "variants.txt", "707-320", "A300B4", "Boeing 717")
    rows = ["0000001 Boeing 717", "0000002 707-320", "0000003 A300B4"]
    for split in ("train", "val", "test", "trainval"):
        text(base / f"images_variant_{split}.txt", *rows)
    for row in rows:
        picture(base / "images" / f"{row.split()[0]}.jpg")


def flowers(root: Path) -> None:
    base = root / "flowers-102"
    for number in range(1, 5):
        picture(base / "jpg" / f"image_{number:05d}.jpg")
    scipy.io.savemat(base / "imagelabels.mat", {"labels": np.array([[77, 1, 102, 3]])})
    scipy.io.savemat(base / "setid.mat", {key: np.array([[4, 1, 3]]) for key in ("trnid", "valid", "tstid")})


def cifar100(root: Path) -> None:
    base = root / "cifar-100-python"
    base.mkdir()
    data = RNG.integers(0, 256, (5, 3072), dtype=np.uint8)
    for split in ("train", "test"):
        (base / split).write_bytes(pickle.dumps({"data": data, "fine_labels": [3, 99, 0, 41, 7]}))
    (base / "meta").write_bytes(pickle.dumps({"fine_label_names": [f"c{i}" for i in range(100)]}))


def kmnist(root: Path) -> None:
    for stem in ("train", "t10k"):
        idx(root / "KMNIST" / "raw" / f"{stem}-images-idx3-ubyte", RNG.integers(0, 256, (10, 28, 28), dtype=np.uint8))
        idx(root / "KMNIST" / "raw" / f"{stem}-labels-idx1-ubyte", np.arange(10, dtype=np.uint8))


def usps(root: Path) -> None:
    rows = []
    for label in (1, 10, 4):
        values = RNG.uniform(-1, 1, 256)
        rows.append(f"{label} " + " ".join(f"{place + 1}:{value:.6f}" for place, value in enumerate(values)))
    for name in ("usps.bz2", "usps.t.bz2"):
        (root / name).write_bytes(bz2.compress("\n".join(rows).encode()))


def unchecked(kind: Any, *names: str) -> Callable[[pytest.MonkeyPatch], None]:
    """Made-up files have no published checksum."""

    def patch(monkeypatch: pytest.MonkeyPatch) -> None:
        for name in names:
            monkeypatch.setattr(kind, name, lambda *_, **__: True)

    return patch


Case = tuple[Callable[[Path], None], Callable[[Path], Any], Callable[[pytest.MonkeyPatch], None] | None]
CASES: dict[str, Case] = {
    "EuroSAT": (trees("eurosat/2750", "Forest", "River", "AnnualCrop"), datasets.EuroSAT, None),
    "Caltech101": (trees("caltech101/101_ObjectCategories", "accordion", "crab", "BACKGROUND_Google"), datasets.Caltech101,
                   unchecked(datasets.Caltech101, "_check_integrity")),
    "Caltech256": (caltech256, datasets.Caltech256, unchecked(datasets.Caltech256, "_check_integrity")),
    "Country211": (trees("country211/train", "AD", "ZW", "BE"), datasets.Country211, None),
    "RenderedSST2": (trees("rendered-sst2/train", "negative", "positive", ending="png"), datasets.RenderedSST2, None),
    "GTSRB": (trees("gtsrb/GTSRB/Training", "00000", "00001", "00042", ending="ppm"), datasets.GTSRB, None),
    "Food101": (food, datasets.Food101, None),
    "OxfordIIITPet": (pets, datasets.OxfordIIITPet, None),
    "DTD": (textures, datasets.DTD, None),
    "FGVCAircraft": (aircraft, lambda root: datasets.FGVCAircraft(root, split="train"), None),
    "Flowers102": (flowers, datasets.Flowers102, unchecked(datasets.Flowers102, "_check_integrity")),
    "CIFAR100": (cifar100, datasets.CIFAR100, unchecked(datasets.CIFAR100, "_check_integrity", "_load_meta")),
    "KMNIST": (kmnist, datasets.KMNIST, None),
    "USPS": (usps, datasets.USPS, unchecked(datasets.usps, "download_url")),
}  # fmt: skip


def test_every_set_is_tried() -> None:
    elsewhere = {"MNIST", "FashionMNIST", "EMNIST", "CIFAR10", "STL10", "SVHN"}  # tests/unit/test_data_sources.py
    assert set(CASES) | elsewhere == set(SPLITS)


@pytest.mark.parametrize("name", CASES)
def test_the_same_samples_in_the_same_classes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str) -> None:
    make, library, patch = CASES[name]
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    if patch is not None:
        patch(monkeypatch)
    make(tmp_path)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        theirs = library(tmp_path)
        expected = [(np.asarray(image.convert("RGB")), int(label)) for image, label in (theirs[i] for i in range(len(theirs)))]
    listing = open_source(f"torchvision:{name}?root={tmp_path}")
    found = pixels(listing)
    assert len(found) == len(expected) >= 3

    def key(pair: tuple[Any, int]) -> bytes:
        return bytes(pair[0].tobytes())

    ours = sorted(zip(found, [item.label for item in listing.items], strict=True), key=key)
    for (one, label), (other, wanted) in zip(ours, sorted(expected, key=key), strict=True):
        assert (one == other).all()
        assert label == wanted
    classes = getattr(theirs, "classes", None) or getattr(theirs, "categories", None)
    if classes is not None and name not in ("Flowers102", "Caltech256", "CIFAR100", "KMNIST"):
        assert list(listing.classes) == [str(c) for c in classes]
