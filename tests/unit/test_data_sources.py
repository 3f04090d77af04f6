"""Data in other libraries' own formats, written by these libraries: equal pixels and labels, and what is refused by name."""

from __future__ import annotations

import gc
import gzip
import pickle
import subprocess
import sys
import warnings
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray
from PIL import Image

from trainer.config import UserError
from trainer.config.data import Data
from trainer.config.sources import Listing, open_source, open_splits
from trainer.config.sources.torchvision import _letters
from trainer.data import readers
from trainer.data.images import BadImageError

RNG = np.random.default_rng(0)
PICTURES = [RNG.integers(0, 256, (9 + i % 3, 11, 3), dtype=np.uint8) for i in range(12)]
NAMES = ["cat", "dog", "eel"]


@pytest.fixture(autouse=True)
def _own_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("HF_HOME", "HF_HUB_CACHE", "HF_DATASETS_CACHE"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))


def refused(source: str, *words: str) -> None:
    with pytest.raises(UserError) as caught:
        open_source(source)
    for word in words:
        assert word in str(caught.value)


def pixels(listing: Listing) -> list[NDArray[np.uint8]]:
    reader = pickle.loads(pickle.dumps(readers.reader(listing)))  # as a spawned process would have it
    found = [reader.read(item.key, 3, 10**6).permute(1, 2, 0).numpy() for item in listing.items]
    assert [reader.sides(item.key) for item in listing.items] == [one.shape[:2] for one in found]
    return found


def same(listing: Listing, pictures: list[Any], labels: list[int]) -> None:
    assert [item.label for item in listing.items] == labels
    found = pixels(listing)
    assert len(found) == len(pictures)
    for one, other in zip(found, pictures, strict=True):
        assert (one == np.asarray(other)).all()


# --- hf


def table(labels: list[int] | None = None, names: list[str] | None = None) -> Any:
    import datasets

    features = datasets.Features({"image": datasets.Image(), "label": datasets.ClassLabel(names=names or NAMES)})
    rows = {"image": [Image.fromarray(p) for p in PICTURES], "label": labels or [i % 3 for i in range(12)]}
    return datasets.Dataset.from_dict(rows, features=features)


def test_hf_folders_give_what_the_library_gives(tmp_path: Path) -> None:
    import datasets

    found = table()
    datasets.DatasetDict({"train": found, "test": found.select(range(4))}).save_to_disk(tmp_path / "saved")
    found.save_to_disk(tmp_path / "one", num_shards=3)
    found.to_parquet(tmp_path / "parquet" / "data" / "train-00000-of-00001.parquet", batch_size=5)
    found.select(range(6)).to_parquet(tmp_path / "parquet" / "data" / "validation-00000-of-00001.parquet")
    library = datasets.load_from_disk(tmp_path / "saved")["train"]
    for rest in ("saved/train", "saved?split=train", "one", "parquet/train"):
        listing = open_source(f"hf:{tmp_path}/{rest}")
        assert listing.classes == tuple(NAMES)
        same(listing, list(library["image"]), list(library["label"]))
    same(open_source(f"hf:{tmp_path}/parquet/val"), PICTURES[:6], [0, 1, 2] * 2)
    first = open_source(f"hf:{tmp_path}/one").fingerprint()
    assert open_source(f"hf:{(tmp_path / 'one').rename(tmp_path / 'moved')}").fingerprint() == first
    both = open_splits(Data(train=f"hf:{tmp_path}/parquet/train", val="split:0.3"), 0)
    assert both.val is not None
    assert both.val.counts() == [1, 1, 1]


def test_hf_names_are_found_in_the_caches(tmp_path: Path) -> None:
    snapshot = tmp_path / "cache/huggingface/hub/datasets--org--pets/snapshots/abc"
    table().to_parquet(snapshot / "data" / "train-00000-of-00001.parquet")
    pointer = snapshot.parents[1] / "refs" / "main"
    pointer.parent.mkdir(parents=True)
    pointer.write_text("abc")
    same(open_source("hf:org/pets/train"), PICTURES, [0, 1, 2] * 4)
    refused("hf:org/pets/tain", "no split 'tain'", "it has train")
    refused("hf:org/birds", "not in the local caches", "graft fetch RUN")


def test_hf_mistakes_are_named(tmp_path: Path) -> None:
    import datasets

    datasets.DatasetDict({"train": table()}).save_to_disk(tmp_path / "d")
    refused(f"hf:{tmp_path}/d/tran", "no split 'tran'", "did you mean 'train'")
    refused(f"hf:{tmp_path}/d/train?label=lable", "no column 'lable'", "did you mean 'label'", "it has image, label")
    refused(f"hf:{tmp_path}/d/train?lable=x", "unknown 'lable'")
    refused(f"hf:{tmp_path}/nothing/train", "no such folder")
    (tmp_path / "empty").mkdir()
    refused(f"hf:{tmp_path}/empty", "neither saved by save_to_disk")
    plain = table().cast_column("label", datasets.Value("int64"))
    plain.map(lambda row: {"label": -1}).save_to_disk(tmp_path / "unlabelled")
    refused(f"hf:{tmp_path}/unlabelled", "arrow:0 has no label (-1)")
    file = next((tmp_path / "d" / "train").glob("*.arrow"))
    file.write_bytes(file.read_bytes()[:-700])
    refused(f"hf:{tmp_path}/d/train", file.name, "truncated")
    file.unlink()
    refused(f"hf:{tmp_path}/d/train", f"{file.name} is missing")


# --- webdataset


def shards(folder: Path, labels: list[str], **extra: Any) -> str:
    import webdataset

    folder.mkdir(exist_ok=True)
    for shard in range(2):
        with webdataset.TarWriter(str(folder / f"s-{shard:03d}.tar")) as out:
            for index in range(shard * 6, shard * 6 + 6):
                out.write({"__key__": f"dir/{index:04d}", "png": PICTURES[index], "cls": labels[index], **extra})
    return f"webdataset:{folder}/s-{{000..001}}.tar"


def test_webdataset_gives_what_the_library_gives(tmp_path: Path) -> None:
    import webdataset

    source = shards(tmp_path / "s", [str(i % 3) for i in range(12)], json={"info": {"kind": "x"}, "label": "unused"})
    pattern = str(tmp_path / "s" / "s-{000..001}.tar")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ResourceWarning)  # webdataset leaves its shards open
        library = list(webdataset.WebDataset(pattern, shardshuffle=False).decode("pilrgb").to_tuple("png", "cls"))
        gc.collect()
    same(open_source(source), [row[0] for row in library], [row[1] for row in library])
    assert open_source(source).classes == ("0", "1", "2")
    again = open_source(source)  # from the index that was kept
    same(again, PICTURES, [0, 1, 2] * 4)
    assert len(list((tmp_path / "cache" / "graft" / "webdataset").iterdir())) == 2
    (tmp_path / "s" / "classes.txt").write_text("\n".join(NAMES))
    assert open_source(source).classes == tuple(NAMES)
    (tmp_path / "s" / "classes.txt").unlink()
    assert open_source(source + "?label=json.info.kind").classes == ("x",)
    assert open_source(source + "?image=jpg;png").fingerprint() == again.fingerprint()


def test_webdataset_mistakes_are_named(tmp_path: Path) -> None:
    source = shards(tmp_path / "s", [str(i % 3) for i in range(12)])
    first = tmp_path / "s" / "s-000.tar"
    refused(source.replace("001}", "002}"), "s-002.tar: no such shard")
    refused(source + "?image=jpg", "sample 'dir/0000' has no image (jpg)", "only cls, png")
    refused(source + "?label=txt", "sample 'dir/0000' has no label 'txt'")
    refused("webdataset:pipe:cat x", "files of this machine")
    (tmp_path / "s" / "classes.txt").write_text("cat\ndog")
    refused(source, "label '2' of s-000.tar/dir/0002.png is out of range, there are 2 classes")
    (tmp_path / "s" / "classes.txt").unlink()
    whole = first.read_bytes()
    for cut in (len(whole) - 9000, 700, 3):
        first.write_bytes(whole[:cut])
        refused(source, "s-000.tar", "truncated")
    first.write_bytes(gzip.compress(whole))
    refused(source, "s-000.tar: compressed")
    first.write_bytes(whole)
    listing = open_source(source)
    first.write_bytes(whole[:2000])  # after it was listed
    with pytest.raises(BadImageError, match=r"s-000.tar.*(truncated|damaged|not an image|is empty)"):
        pixels(listing)


# --- torchvision


def idx(path: Path, array: NDArray[np.uint8]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    head = bytes([0, 0, 8, array.ndim]) + b"".join(n.to_bytes(4, "big") for n in array.shape)
    path.write_bytes(head + array.tobytes())


def test_mnist_and_emnist_as_torchvision_reads_them(tmp_path: Path) -> None:
    from torchvision import datasets

    grey, labels = RNG.integers(0, 256, (20, 28, 28), dtype=np.uint8), np.arange(20, dtype=np.uint8) % 10
    for name, stems in (("MNIST", ("train", "t10k")), ("FashionMNIST", ("train", "t10k")), ("EMNIST", ("emnist-letters-train",
                        "emnist-letters-test"))):  # fmt: skip
        for stem in stems:
            idx(tmp_path / name / "raw" / f"{stem}-images-idx3-ubyte", grey)
            idx(tmp_path / name / "raw" / f"{stem}-labels-idx1-ubyte", labels + (name == "EMNIST"))
    for name in ("MNIST", "FashionMNIST"):
        library = getattr(datasets, name)(tmp_path, train=False)
        listing = open_source(f"torchvision:{name}?root={tmp_path}&split=test")
        same(listing, [np.asarray(image.convert("RGB")) for image, _ in library], [label for _, label in library])
    assert listing.classes == tuple(datasets.FashionMNIST.classes)
    letters = open_source(f"torchvision:EMNIST?root={tmp_path}&part=letters")
    library = datasets.EMNIST(tmp_path, split="letters")
    assert [letters.classes[item.label] for item in letters.items] == [library.classes[label] for _, label in library]
    for part in ("byclass", "balanced", "bymerge", "digits", "mnist"):
        assert list(_letters(part)) == list(datasets.EMNIST.classes_split_dict[part])
    file = tmp_path / "MNIST" / "raw" / "train-images-idx3-ubyte"
    Path(f"{file}.gz").write_bytes(gzip.compress(file.read_bytes()))
    file.unlink()
    assert (pixels(open_source(f"torchvision:MNIST?root={tmp_path}"))[3][..., 0] == grey[3]).all()


def test_cifar_stl_and_svhn(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import scipy.io
    from torchvision import datasets

    data = RNG.integers(0, 256, (10, 3072), dtype=np.uint8)
    folder = tmp_path / "cifar-10-batches-py"
    folder.mkdir()
    for name in (*(f"data_batch_{i}" for i in range(1, 6)), "test_batch"):
        (folder / name).write_bytes(pickle.dumps({"data": data, "labels": list(range(10))}))
    (folder / "batches.meta").write_bytes(pickle.dumps({"label_names": [f"c{i}" for i in range(10)]}))
    monkeypatch.setattr(datasets.CIFAR10, "_check_integrity", lambda self: True)
    monkeypatch.setattr(datasets.CIFAR10, "_load_meta", lambda self: None)
    library = datasets.CIFAR10(tmp_path)
    listing = open_source(f"torchvision:CIFAR10?root={tmp_path}")
    same(listing, [image for image, _ in library], [label for _, label in library])
    assert listing.classes[3] == "c3"
    (folder / "test_batch").write_bytes(pickle.dumps(print))
    refused(f"torchvision:CIFAR10?root={tmp_path}&split=test", "test_batch", "it would run builtins.print")
    stl = tmp_path / "stl10_binary"
    stl.mkdir()
    (stl / "class_names.txt").write_text("\n".join(f"s{i}" for i in range(10)))
    (stl / "train_X.bin").write_bytes(RNG.integers(0, 256, (4, 3, 96, 96), dtype=np.uint8).tobytes())
    (stl / "train_y.bin").write_bytes(bytes([1, 10, 3, 4]))
    (stl / "fold_indices.txt").write_text("0")
    monkeypatch.setattr(datasets.STL10, "_check_integrity", lambda self: True)
    library = datasets.STL10(tmp_path)
    same(open_source(f"torchvision:STL10?root={tmp_path}"), [i for i, _ in library], [0, 9, 2, 3])
    scipy.io.savemat(tmp_path / "train_32x32.mat", {"X": data.reshape(32, 32, 3, 10), "y": np.arange(1, 11)[:, None]})
    monkeypatch.setattr(datasets.SVHN, "_check_integrity", lambda self: True)
    library = datasets.SVHN(tmp_path)
    same(open_source(f"torchvision:SVHN?root={tmp_path}"), [i for i, _ in library], [int(label) for _, label in library])


def test_torchvision_mistakes_are_named(tmp_path: Path) -> None:
    refused("torchvision:CIFAR11", "unknown data set 'CIFAR11'", "did you mean 'CIFAR10'")
    refused("torchvision:MNIST?split=tset", "no split 'tset'", "did you mean 'test'")
    refused(f"torchvision:MNIST?root={tmp_path}", "is not there", "graft fetch RUN")
    idx(tmp_path / "MNIST/raw/train-images-idx3-ubyte", np.zeros((3, 28, 28), dtype=np.uint8))
    idx(tmp_path / "MNIST/raw/train-labels-idx1-ubyte", np.array([1, 2, 11], dtype=np.uint8))
    refused(f"torchvision:MNIST?root={tmp_path}", "label 11 of sample 2 is out of range")
    file = tmp_path / "MNIST/raw/train-labels-idx1-ubyte"
    file.write_bytes(file.read_bytes()[:-1])
    refused(f"torchvision:MNIST?root={tmp_path}", "truncated")


def test_listing_them_imports_no_torch(tmp_path: Path) -> None:
    table().save_to_disk(tmp_path / "d")
    idx(tmp_path / "MNIST/raw/train-images-idx3-ubyte", np.zeros((3, 28, 28), dtype=np.uint8))
    idx(tmp_path / "MNIST/raw/train-labels-idx1-ubyte", np.array([1, 2, 3], dtype=np.uint8))
    sources = [f"hf:{tmp_path}/d", shards(tmp_path / "s", ["a"] * 12), f"torchvision:MNIST?root={tmp_path}"]
    code = f"""
import sys
from trainer.config.sources import open_source
for source in {sources!r}: open_source(source)
sys.exit(any(m in sys.modules for m in ('torch', 'torchvision', 'datasets', 'webdataset')))
"""
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
