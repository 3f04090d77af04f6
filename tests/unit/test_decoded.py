"""Images that are decoded once: the same pixels as from the files, whatever happens to what is kept."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from launcher import cache
from tests.faults.test_repainting import file
from tests.painter import photographs
from tests.trainers import NETWORK, Zygote, run_file, same
from trainer.config import GraftError, RefusedError, Run, UserError, load
from trainer.config.run import Parallel, Train
from trainer.config.sources import open_splits
from trainer.data import ImageDataset, images
from trainer.data.dataset import BadCount
from trainer.features import fill
from trainer.features.pictures import Decoded, PictureStore, granted
from trainer.runtime import Runtime
from trainer.spec import InputSpec

SPEC = InputSpec(image_size=16, in_channels=3, mean=(0.5,) * 3, std=(0.5,) * 3, interpolation="bicubic")
KILLED = -9


@pytest.fixture(scope="module")
def photos(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two classes of JPEGs of several sizes."""
    root, draw = tmp_path_factory.mktemp("photos"), np.random.default_rng(0)
    for index in range(80):
        folder = root / "ab"[index % 2]
        folder.mkdir(exist_ok=True)
        width, height = [(30, 22), (20, 26), (64, 16), (12, 14)][index % 4]
        grid = draw.integers(0, 255, (height // 4 + 1, width // 4 + 1, 3), dtype=np.uint8)
        Image.fromarray(grid).resize((width, height), Image.Resampling.BICUBIC).save(folder / f"{index}.jpg", quality=90)
    return root


def settings(photos: Path, **data: Any) -> dict[str, Any]:
    return {"train": f"folder:{photos}", "val": "split:0.2", "cache": "decoded", **data}


def opened(run: Run, *datasets: ImageDataset, bad: int = 0) -> Decoded:
    runtime = Runtime(Parallel(device="cpu", threads=1), Train(), planned=None, uncompiled=None)
    decoded = Decoded(run, runtime, SPEC)
    assert decoded.open(datasets, BadCount(bad), at=lambda stage: None, stop=lambda: False)
    return decoded


@pytest.mark.parametrize(
    "data",
    [
        {"augment": {"crop": "random", "flip": 0.5, "color": 0.3}, "resize_to": 20},
        {"augment": {"crop": "pad", "padding": 2, "rotate": 20.0}, "decoder": "torchvision"},
        {"augment": {"auto": "rand", "erase": 0.5, "erase_fill": "noise"}, "resize": "squash", "mix": {"mixup": 0.2}},
        {"augment": {}, "resize_to": 18, "interpolation": "bilinear"},
    ],
    ids=["random", "pad", "policy and mix", "still"],
)  # fmt: skip
def test_the_same_to_the_bit_as_from_the_files(tmp_path: Path, photos: Path, data: dict[str, Any]) -> None:
    run = load(run_file(tmp_path, data=settings(photos, **{"augment": {}, **data}, workers=0)), [])
    splits = open_splits(run.data, 0)
    assert splits.val is not None
    listings = {True: splits.train, False: splits.val}

    def made(*, train: bool) -> ImageDataset:
        return ImageDataset(listings[train], run.data, SPEC, train=train, seed=3)

    decoded = opened(run, made(train=True), made(train=False))
    for train in (True, False):
        plain, kept = made(train=train), made(train=train)
        decoded.serve(kept)
        keys = [(epoch, index) for epoch in (0, 1) for index in range(len(plain))]
        wanted, found = plain.fetch(keys), kept.fetch(keys)
        assert torch.equal(wanted.images, found.images)
        assert torch.equal(wanted.labels, found.labels)
        if wanted.targets is not None:
            assert found.targets is not None
            assert torch.equal(wanted.targets, found.targets)
        assert torch.equal(kept.fetch(keys).images, found.images), "reading changes nothing of what is kept"


def test_crops_of_all_sizes_come_from_images_with_a_short_side(tmp_path: Path, photos: Path) -> None:
    augment = {"crop": "resized", "flip": 0.5}
    with pytest.raises(UserError, match=r"write data.cache: \{kind: decoded, side: 256\}"):
        load(run_file(tmp_path, data=settings(photos, augment=augment)), [])
    with pytest.raises(UserError, match="leave side out"):
        load(run_file(tmp_path, data=settings(photos, augment={"crop": "pad"}, cache={"side": 18})), [])
    run = load(run_file(tmp_path, data=settings(photos, augment=augment, cache={"side": 18}, workers=0)), [])
    dataset = ImageDataset(open_splits(run.data, 0).train, run.data, SPEC, train=True, seed=3)
    from_files = dataset.fetch([(0, 0), (0, 1)]).images
    opened(run, dataset).serve(dataset)
    sides = {min(dataset.read(index).shape[1:]) for index in range(len(dataset))}
    assert sides == {12, 16, 18}, "what is smaller stays as it is"
    twice = [dataset.fetch([(epoch, 0), (epoch, 1)]).images for epoch in (0, 0, 1)]
    assert torch.equal(twice[0], twice[1])
    assert not torch.equal(twice[0], twice[2])
    assert twice[0].shape == from_files.shape == (2, 3, 16, 16)


def test_what_cannot_be_decoded_is_passed_over_as_ever(tmp_path: Path, photos: Path) -> None:
    root = tmp_path / "photos"
    for index, source in enumerate(sorted(photos.rglob("*.jpg"))):
        (root / source.parent.name).mkdir(parents=True, exist_ok=True)
        data = source.read_bytes()
        (root / source.parent.name / source.name).write_bytes(data[: len(data) // 2] if index == 3 else data)
    run = load(run_file(tmp_path, data=settings(root, val=None, max_bad=2, workers=0, augment={"crop": "pad", "padding": 1})), [])
    listing = open_splits(run.data, 0).train
    plain, kept = (ImageDataset(listing, run.data, SPEC, train=True, seed=3) for _ in range(2))
    opened(run, kept, bad=2).serve(kept)
    keys = [(0, index) for index in range(len(plain))]
    wanted, found = plain.fetch(keys), kept.fetch(keys)
    assert torch.equal(wanted.images, found.images)
    assert wanted.bad == found.bad
    assert len(found.bad) == 1


def test_few_files_are_mapped_at_a_time(tmp_path: Path, photos: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(fill, "_MOST", 1)  # a file for each pass of 32 images
    data = settings(photos, val=None, workers=0, augment={}, cache={"kind": "decoded", "path": str(tmp_path / "kept")})
    run = load(run_file(tmp_path, data=data), [])
    plain, kept = (ImageDataset(open_splits(run.data, 0).train, run.data, SPEC, train=True, seed=3) for _ in range(2))
    decoded = opened(run, kept)
    decoded.serve(kept)
    (reader,) = decoded._readers.values()
    assert len(reader._files) == len(list((tmp_path / "kept").glob("*/*.rows"))) == 3
    reader._most, reader._files = 1, {}
    keys = [(0, index) for index in (0, 79, 1, 78, 2)]
    assert torch.equal(plain.fetch(keys).images, kept.fetch(keys).images)
    assert len(reader._files) == 1
    for path in (tmp_path / "kept").glob("*/*.rows"):
        path.unlink()
    with pytest.raises(GraftError, match="was it removed while this run reads it"):
        kept.fetch([(0, 0), (0, 79)])


def test_where_one_rank_cannot_read_none_goes_on(
    tmp_path: Path, photos: Path, monkeypatch: pytest.MonkeyPatch
) -> None:  # fmt: skip
    """The files go before they are opened: the ranks hear of it together."""
    data = settings(photos, val=None, workers=0, augment={}, cache={"kind": "decoded", "path": str(tmp_path / "kept")})
    run = load(run_file(tmp_path, data=data), [])
    found = ImageDataset(open_splits(run.data, 0).train, run.data, SPEC, train=True, seed=3)
    opens = PictureStore.pictures

    def gone(store: PictureStore, name: str) -> Any:
        (store.folder / name).unlink()
        return opens(store, name)

    monkeypatch.setattr(PictureStore, "pictures", gone)
    with pytest.raises(RefusedError, match=r"images cannot be kept: .*No such file"):
        opened(run, found)


def test_there_must_be_something_to_decode(tmp_path: Path) -> None:
    run = load(run_file(tmp_path, data={"cache": "decoded"}), [])
    with pytest.raises(UserError, match=r"data.train \(digits:\) is in memory, decoded; leave cache out"):
        granted(run, {"train": open_splits(run.data, 0).train, "val": None})
    photographs(tmp_path / "train", 4, 0)
    pairs = load(file(tmp_path, tmp_path), ["data.cache=decoded"])
    assert not pairs.task.translates
    with pytest.raises(UserError, match="keeps single images, and a sample of this task diffusion is two"):
        granted(pairs, {"train": None, "val": None})


def test_torchvision_decodes_what_pillow_does(tmp_path: Path) -> None:
    image = Image.effect_noise((40, 30), 80).convert("RGB")
    plain, turned, grey, cmyk = (tmp_path / f"{name}.jpg" for name in ("plain", "turned", "grey", "cmyk"))
    image.save(plain, quality=90)
    exif = Image.Exif()
    exif[0x0112] = 6
    image.save(turned, quality=90, exif=exif)
    image.convert("L").save(grey, quality=90)
    image.convert("CMYK").save(cmyk, quality=90)
    for path in (plain, turned, grey, cmyk):
        for channels in (1, 3):
            ours, theirs = (images.read(path, channels, 10**6, decoder) for decoder in ("pillow", "torchvision"))
            assert ours.shape == theirs.shape
            assert int((ours.int() - theirs.int()).abs().max()) <= 2
    plain.write_bytes(plain.read_bytes()[:500])
    with pytest.raises(images.BadImageError, match="damaged"):
        images.read(plain, 3, 10**6, "torchvision")


def test_a_run_killed_while_it_decodes_and_one_whose_files_are_damaged(tmp_path: Path, photos: Path, zygote: Zygote) -> None:
    """The losses and weights are those of a run that decodes every time."""
    model = {"source": f"python:{NETWORK}:deep", "adapt": {"in_channels": 3, "image_size": 16}}

    def file(name: str, kind: str) -> Path:
        data = settings(
            photos, workers=1, resize_to=20, augment={"crop": "random", "flip": 0.5},
            cache={"kind": kind, "path": str(tmp_path / "kept")},
        )  # fmt: skip
        return run_file(tmp_path / name, model=model, data=data, train={"steps": 8}, evaluate={"every": "4 steps"})

    def trained(name: str, kind: str, fault: str = "") -> list[int]:
        return zygote.run(file(name, kind), tmp_path / name, fault=fault, world=2)

    assert trained("plain", "none") == [0, 0]
    assert trained("kept", "decoded", "features-synced:1=kill")[1] == KILLED
    assert len(list((tmp_path / "kept").glob("*/*.rows"))) < 2
    assert trained("kept", "decoded") == [0, 0]
    same(tmp_path / "kept" / "run", tmp_path / "plain" / "run")
    kept = sorted((tmp_path / "kept").glob("*/*.rows"))
    assert len(kept) >= 2
    assert {one.what for one in cache.find([], tmp_path / "kept", None)} == {
        "decoded images, short side 20", "decoded images, 16 x 16 of 20"
    }  # fmt: skip
    for path in kept:
        data = bytearray(path.read_bytes())
        data[-5] ^= 1
        path.write_bytes(data)
    assert trained("mended", "decoded") == [0, 0]
    same(tmp_path / "mended" / "run", tmp_path / "plain" / "run")
    log = "".join(path.read_text() for path in (tmp_path / "mended" / "run" / "log").glob("attempt-*"))
    assert log.count("is damaged; what it held is computed again") == 2 * len(kept), "each rank says so"
