"""`torchvision:NAME?root=FOLDER&split=SPLIT`: a data set as torchvision downloads it, read from its files.

`graft fetch RUN` downloads; nothing else does. The default root is the user's cache.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any

from trainer.config.errors import UserError, nearest
from trainer.config.formats import places, query
from trainer.config.sources import folder as folders
from trainer.config.sources.listing import Item, Listing

_MNIST = ("MNIST", "FashionMNIST", "KMNIST")
_EMNIST = ("byclass", "bymerge", "balanced", "letters", "digits", "mnist")
_FASHION = ("T-shirt/top", "Trouser", "Pullover", "Dress", "Coat", "Sandal", "Shirt", "Sneaker", "Bag", "Ankle boot")
_KUZUSHIJI = ("o", "ki", "su", "tsu", "na", "ha", "ma", "ya", "re", "wo")
_TREES = {  # folders of classes: the folder of each split below the root
    "EuroSAT": {"all": "eurosat/2750"},
    "Caltech101": {"all": "caltech101/101_ObjectCategories"},
    "Caltech256": {"all": "caltech256/256_ObjectCategories"},
    "Country211": {split: f"country211/{split}" for split in ("train", "valid", "test")},
    "RenderedSST2": {"train": "rendered-sst2/train", "val": "rendered-sst2/valid", "test": "rendered-sst2/test"},
    "GTSRB": {"train": "gtsrb/GTSRB/Training"},
}
_NO_CLASS = ("BACKGROUND_Google",)  # of Caltech101; torchvision leaves it out as well
_TWO, _THREE = ("train", "test"), ("train", "val", "test")
SPLITS: dict[str, tuple[str, ...]] = {
    **dict.fromkeys((*_MNIST, "EMNIST", "CIFAR10", "CIFAR100", "STL10", "USPS", "Food101"), _TWO), "SVHN": (*_TWO, "extra"),
    "Flowers102": _THREE, "DTD": _THREE, "FGVCAircraft": (*_THREE, "trainval"), "OxfordIIITPet": ("trainval", "test"),
    **{name: tuple(splits) for name, splits in _TREES.items()},
}  # fmt: skip
KEYS = ("root", "split", "part")


def listing(rest: str) -> Listing:
    """The samples of a split in the library's order, and the names of the classes. Raises UserError."""
    name, root, split, part = parse(rest)
    if name in _TREES:
        found = _tree(name, root, root / _TREES[name][split])
    elif name in _LISTED:
        found = _listed(name, root, *_LISTED[name](root, split, part))
    else:
        base, files, read, names = _stored(name, root, split, part)
        _there(name, root, *(base / file for file in files))
        labels = read(labels=True)
        wrong = next((i for i, label in enumerate(labels) if not 0 <= label < len(names)), None)
        if wrong is not None:
            raise UserError(f"torchvision:{name}: label {labels[wrong]} of sample {wrong} is out of range, 0 to {len(names) - 1}")
        items = tuple(Item(f"{name}/{split}:{row}", int(label)) for row, label in enumerate(labels))
        found = Listing("torchvision", base, tuple(names), items, tuple(files), {"pixels": partial(read, labels=False)})
    if not found.items:
        raise UserError(f"torchvision:{name}: {root} holds no samples of {split}")
    return found


def parse(rest: str) -> tuple[str, Path, str, str]:
    """(name, root, split, part) of a source. Raises UserError."""
    name, found = query.parse("torchvision", rest, KEYS)
    asked = found.values
    if name not in SPLITS:
        raise UserError(f"torchvision:{rest}: unknown data set '{name}'{nearest(name, SPLITS)}; known: {', '.join(SPLITS)}")
    splits = SPLITS[name]
    split = asked.get("split", splits[0])
    if split not in splits:
        raise UserError(f"torchvision:{name}: no split '{split}'{nearest(split, splits)}; it has {', '.join(splits)}")
    part = asked.get("part", {"EMNIST": "balanced", "DTD": "1"}.get(name, ""))
    if name == "EMNIST" and part not in _EMNIST:
        raise UserError(f"torchvision:EMNIST: no part '{part}'{nearest(part, _EMNIST)}; it has {', '.join(_EMNIST)}")
    root = Path(asked["root"]).expanduser() if "root" in asked else places.cache() / "torchvision"
    return name, root, split, part


def _there(name: str, root: Path, *needed: Path) -> None:
    for path in needed:
        if not path.exists() and not Path(f"{path}.gz").exists():
            raise UserError(
                f"torchvision:{name}: {path} is not there; `graft fetch RUN` downloads it, or write ?root= where it is"
            )


def _stored(name: str, root: Path, split: str, part: str) -> tuple[Path, list[str], Callable[..., Any], Sequence[str]]:
    """(folder, its files, how pixels or labels are read, class names) of what lies in arrays."""
    names: Sequence[str]
    if name in _MNIST or name == "EMNIST":
        base = root / name / "raw"
        stem = f"emnist-{part}-{split}" if name == "EMNIST" else {"train": "train", "test": "t10k"}[split]
        found = [f"{stem}-images-idx3-ubyte", f"{stem}-labels-idx1-ubyte"]
        files = [file if (base / file).exists() else f"{file}.gz" for file in found]
        names = {"FashionMNIST": _FASHION, "KMNIST": _KUZUSHIJI}.get(name) or (
            _letters(part) if name == "EMNIST" else tuple("0123456789")
        )
        return base, files, partial(_idx, base, found, 1 if part == "letters" else 0), names
    if name in ("CIFAR10", "CIFAR100"):
        ten = name == "CIFAR10"
        base = root / ("cifar-10-batches-py" if ten else "cifar-100-python")
        train = [f"data_batch_{i}" for i in range(1, 6)] if ten else ["train"]
        files = train if split == "train" else ["test_batch" if ten else "test"]
        meta = base / ("batches.meta" if ten else "meta")
        _there(name, root, meta)
        names = _cifar_names(meta, "label_names" if ten else "fine_label_names")
        return base, files, partial(_cifar, base, files, "labels" if ten else "fine_labels"), names
    if name == "STL10":
        base = root / "stl10_binary"
        _there(name, root, base / "class_names.txt")
        names = (base / "class_names.txt").read_text(encoding="utf-8").split()
        return base, [f"{split}_X.bin", f"{split}_y.bin"], partial(_stl10, base, split), names
    if name == "SVHN":
        return root, [f"{split}_32x32.mat"], partial(_svhn, root / f"{split}_32x32.mat"), tuple("0123456789")
    file = "usps.bz2" if split == "train" else "usps.t.bz2"
    return root, [file], partial(_usps, root / file), tuple("0123456789")


def _letters(part: str) -> tuple[str, ...]:
    """EMNIST's classes as torchvision numbers them; `letters` counts from 1 there, and from 0 here."""
    digits, upper, lower = "0123456789", "ABCDEFGHIJKLMNOPQRSTUVWXYZ", "abcdefghijklmnopqrstuvwxyz"
    merged = "".join(c for c in lower if c not in "cijklmopsuvwxyz")
    names = {"byclass": digits + upper + lower, "letters": lower, "digits": digits, "mnist": digits}
    return tuple(names.get(part, digits + upper + merged))


def _idx(base: Path, files: list[str], first: int, *, labels: bool) -> Any:
    from trainer.config.formats import arrays

    values = arrays.idx(base / files[1 if labels else 0])
    return (values.astype(int) - first).tolist() if labels else values


def _cifar_names(meta: Path, key: str) -> list[str]:
    from trainer.config.formats import arrays

    return [str(name) for name in arrays.cifar(meta).get(key, [])]


def _cifar(base: Path, files: list[str], key: str, *, labels: bool) -> Any:
    import numpy as np

    from trainer.config.formats import arrays

    batches = [arrays.cifar(base / file) for file in files]
    for file, batch in zip(files, batches, strict=True):
        if key not in batch or "data" not in batch or len(batch[key]) != len(batch["data"]):
            raise UserError(f"{base / file}: damaged: it lacks {key} or data")
    if labels:
        return [int(label) for batch in batches for label in batch[key]]
    data = np.concatenate([np.asarray(batch["data"], dtype=np.uint8) for batch in batches])
    return np.ascontiguousarray(data.reshape(-1, 3, 32, 32).transpose(0, 2, 3, 1))


def _stl10(base: Path, split: str, *, labels: bool) -> Any:
    from trainer.config.formats import arrays

    if labels:
        return (arrays.binary(base / f"{split}_y.bin", ()).astype(int) - 1).tolist()
    return arrays.binary(base / f"{split}_X.bin", (3, 96, 96)).transpose(0, 3, 2, 1)


def _svhn(path: Path, *, labels: bool) -> Any:
    from trainer.config.formats import arrays

    found = arrays.mat(path)
    return (found["y"].astype(int).ravel() % 10).tolist() if labels else found["X"].transpose(3, 0, 1, 2)


def _usps(path: Path, *, labels: bool) -> Any:
    from trainer.config.formats import arrays

    pixels, numbers = arrays.usps(path)
    return numbers.tolist() if labels else pixels


def _tree(name: str, root: Path, base: Path) -> Listing:
    _there(name, root, base)
    found = folders.listing(str(base))
    names = tuple(label for label in found.classes if label not in _NO_CLASS)
    place = {label: index for index, label in enumerate(names)}
    items = [(item.key, place.get(found.classes[item.label])) for item in found.items]
    return Listing("torchvision", base, names, tuple(Item(key, label) for key, label in items if label is not None))


def _listed(name: str, root: Path, base: Path, rows: list[tuple[str, str]], names: Sequence[str]) -> Listing:
    """Files with a class each; `names` in the library's order."""
    place = {label: index for index, label in enumerate(names)}
    items = tuple(Item(file, place[label]) for file, label in rows)
    _there(name, root, *(base / item.key for item in items[:1]))
    return Listing("torchvision", base, tuple(names), items)


def _lines(name: str, root: Path, file: Path) -> list[str]:
    _there(name, root, file)
    return [line.strip() for line in file.read_text(encoding="utf-8").splitlines() if line.strip()]


_Rows = tuple[Path, list[tuple[str, str]], Sequence[str]]


def _food(root: Path, split: str, _: str) -> _Rows:
    base = root / "food-101"
    rows = [(f"images/{line}.jpg", line.partition("/")[0]) for line in _lines("Food101", root, base / "meta" / f"{split}.txt")]
    return base, rows, sorted({label for _, label in rows})


def _pets(root: Path, split: str, _: str) -> _Rows:
    base = root / "oxford-iiit-pet"
    found = [line.split() for line in _lines("OxfordIIITPet", root, base / "annotations" / f"{split}.txt")]
    names = {int(n): " ".join(p.title() for p in image.rpartition("_")[0].split("_")) for image, n, *_ in found}
    return base, [(f"images/{image}.jpg", names[int(n)]) for image, n, *_ in found], [names[n] for n in sorted(names)]


def _textures(root: Path, split: str, part: str) -> _Rows:
    base = root / "dtd" / "dtd"
    lines = _lines("DTD", root, base / "labels" / f"{split}{part}.txt")
    rows = [(f"images/{line}", line.partition("/")[0]) for line in lines]
    return base, rows, sorted({label for _, label in rows})


def _aircraft(root: Path, split: str, _: str) -> _Rows:
    base = root / "fgvc-aircraft-2013b" / "data"
    names = _lines("FGVCAircraft", root, base / "variants.txt")
    lines = [line.split(" ", 1) for line in _lines("FGVCAircraft", root, base / f"images_variant_{split}.txt")]
    return base, [(f"images/{image}.jpg", label) for image, label in lines], names


def _flowers(root: Path, split: str, _: str) -> _Rows:
    from trainer.config.formats import arrays

    base = root / "flowers-102"
    _there("Flowers102", root, base / "setid.mat", base / "imagelabels.mat")
    ids = arrays.mat(base / "setid.mat")[{"train": "trnid", "val": "valid", "test": "tstid"}[split]].ravel().tolist()
    labels = arrays.mat(base / "imagelabels.mat")["labels"].ravel().tolist()
    return base, [(f"jpg/image_{n:05d}.jpg", str(labels[n - 1])) for n in ids], [str(n) for n in range(1, 103)]


_LISTED: dict[str, Callable[[Path, str, str], _Rows]] = {
    "Food101": _food, "OxfordIIITPet": _pets, "DTD": _textures, "FGVCAircraft": _aircraft, "Flowers102": _flowers,
}  # fmt: skip
