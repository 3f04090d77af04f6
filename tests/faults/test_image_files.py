"""Rows I1 to I3 and I9 to I11 of the fault matrix: damaged and hostile image files met by a data set and its loader."""

from __future__ import annotations

import json
import random
import struct
import subprocess
import sys
import zlib
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from trainer.config import UserError
from trainer.config.run import Augment, Data
from trainer.config.sources import open_splits
from trainer.data import BadCount, BadImageError, ImageDataset, eval_batches, train_batches
from trainer.data.images import read
from trainer.spec import InputSpec

SPEC = InputSpec(3, 16, (0.5,) * 3, (0.5,) * 3)
LIMIT = 64_000_000


def folder(root: Path, count: int = 6, suffix: str = "png") -> Path:
    rng = np.random.default_rng(1)
    for name in ("ant", "bee"):
        (root / name).mkdir(parents=True)
        for index in range(count):
            Image.fromarray(rng.integers(0, 256, (20, 24, 3), dtype=np.uint8)).save(root / name / f"{index}.{suffix}")
    return root


def dataset(root: Path, *, train: bool = True, **keys: object) -> ImageDataset:
    data = Data.model_validate({"train": f"folder:{root}", **keys})
    return ImageDataset(open_splits(data, 0).train, data, SPEC, train=train, seed=0)


def reason(path: Path, channels: int = 3) -> str:
    with pytest.raises(BadImageError) as caught:
        read(path, channels, LIMIT)
    return caught.value.reason


def test_no_image_at_all(tmp_path: Path) -> None:
    path = tmp_path / "x.jpg"
    assert reason(path) == "no such file"
    path.write_bytes(b"")
    assert reason(path) == "the file is empty"
    path.write_text("<!DOCTYPE html><html><body>404</body></html>")
    assert reason(path) == "not an image that can be read here"
    path.write_bytes(bytes(1000))
    assert reason(path) == "not an image that can be read here"
    path.write_text("%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n")
    assert reason(path) == "not an image that can be read here"
    path.unlink()
    path.mkdir()
    assert reason(path) == "Is a directory"


@pytest.mark.parametrize("suffix", ["jpg", "png", "webp", "gif", "tif", "bmp", "ppm"])
def test_truncated_at_every_tenth(tmp_path: Path, suffix: str) -> None:
    path = folder(tmp_path, 1, suffix) / "ant" / f"0.{suffix}"
    whole = path.read_bytes()
    for tenth in range(10):
        path.write_bytes(whole[: len(whole) * tenth // 10])
        assert reason(path)


def test_every_flipped_byte_of_a_png_is_seen(tmp_path: Path) -> None:
    """Pillow alone does not look at the checksums of the pixels."""
    path = folder(tmp_path, 1) / "ant" / "0.png"
    whole = path.read_bytes()
    for place in range(len(whole)):
        damaged = bytearray(whole)
        damaged[place] ^= 0x10
        path.write_bytes(damaged)
        assert reason(path)


@pytest.mark.parametrize("suffix", ["jpg", "webp", "gif", "tif", "bmp", "ppm"])
def test_flipped_bytes_give_an_image_or_a_reason_and_nothing_else(tmp_path: Path, suffix: str) -> None:
    path = folder(tmp_path, 1, suffix) / "ant" / f"0.{suffix}"
    whole = path.read_bytes()
    rng = random.Random(0)
    refused = 0
    for _ in range(300):
        damaged = bytearray(whole)
        for _ in range(rng.randint(1, 8)):
            damaged[rng.randrange(min(len(damaged), rng.choice((40, 400, 10**6))))] = rng.randrange(256)
        path.write_bytes(damaged)
        try:
            assert read(path, 3, 100_000).shape[0] == 3
        except BadImageError:
            refused += 1
    assert refused > 30


def huge_png(path: Path, width: int, height: int) -> Path:
    """A true PNG of black 8-bit greys: zeros in deflate blocks that are alike, so that one is compressed and repeated."""
    block = 1 << 20
    compressor = zlib.compressobj(9, wbits=-15)
    head = compressor.compress(bytes(block)) + compressor.flush(zlib.Z_FULL_FLUSH)
    total = (width + 1) * height
    tail = zlib.compressobj(9, wbits=-15)
    rest = tail.compress(bytes(total % block)) + tail.flush()
    adler = struct.pack(">HH", total % 65521, 1)
    data = b"\x78\xda" + head * (total // block) + rest + adler
    out = b"\x89PNG\r\n\x1a\n"
    for name, body in ((b"IHDR", struct.pack(">IIBBBBB", width, height, 8, 0, 0, 0, 0)), (b"IDAT", data), (b"IEND", b"")):
        out += struct.pack(">I", len(body)) + name + body + struct.pack(">I", zlib.crc32(name + body))
    path.write_bytes(out)
    return path


def huge_others(folder: Path) -> list[Path]:
    """Small files whose headers claim 15000 x 15000."""
    side = 15000
    (folder / "x.gif").write_bytes(b"GIF89a" + struct.pack("<HHBBB", 9, 9, 0x80, 0, 0) + bytes(6) + b","
                                   + struct.pack("<HHHHB", 0, 0, side, side, 0) + b"\x02\x02\x44\x01\x00;")  # fmt: skip
    (folder / "x.bmp").write_bytes(b"BM" + struct.pack("<IHHIIiiHHIIiiII", 54, 0, 0, 54, 40, side, side, 1, 24, 0, 0, 0, 0, 0, 0))
    (folder / "x.ppm").write_bytes(b"P6 15000 15000 255\n" + bytes(100))
    Image.new("RGB", (8, 8)).save(folder / "x.webp", save_all=True, append_images=[Image.new("RGB", (8, 8), "red")])
    webp = bytearray((folder / "x.webp").read_bytes())
    at = webp.index(b"VP8X") + 12
    webp[at : at + 6] = (side - 1).to_bytes(3, "little") * 2
    (folder / "x.webp").write_bytes(webp)
    jpeg = bytearray()
    Image.new("RGB", (8, 8)).save(folder / "x.jpg")
    jpeg += (folder / "x.jpg").read_bytes()
    at = jpeg.index(b"\xff\xc0") + 5
    jpeg[at : at + 4] = struct.pack(">HH", side, side)
    (folder / "x.jpg").write_bytes(jpeg)
    return [folder / f"x.{suffix}" for suffix in ("gif", "bmp", "ppm", "webp", "jpg")]


def test_huge_images_are_refused_before_they_are_decoded(tmp_path: Path) -> None:
    """169 and 400 megapixels, warnings as errors: refused with the size, and memory hardly grows."""
    small = huge_png(tmp_path / "small.png", 1500, 1200)
    assert not read(small, 1, LIMIT).any()
    Image.new("RGB", (9, 9)).save(tmp_path / "warm.webp")
    paths = [huge_png(tmp_path / "169.png", 13000, 13000), huge_png(tmp_path / "400.png", 20000, 20000), *huge_others(tmp_path)]
    code = """
import json, resource, sys
from trainer.data.images import BadImageError, read
peak = lambda: resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
read(sys.argv[1], 3, 64_000_000), read(sys.argv[2], 3, 64_000_000)
reasons = []
before = peak()
for path in sys.argv[3:]:
    try:
        read(path, 3, 64_000_000)
    except BadImageError as error:
        reasons.append(error.reason)
print(json.dumps([peak() - before, reasons]))
"""
    arguments = [str(small), str(tmp_path / "warm.webp"), *map(str, paths)]
    done = subprocess.run([sys.executable, "-W", "error", "-c", code, *arguments], capture_output=True, text=True, check=True)
    assert done.stderr == ""
    grown, reasons = json.loads(done.stdout)
    assert len(reasons) == len(paths)
    assert reasons[0] == "13000 x 13000 pixels, more than data.max_pixels 64000000"
    assert reasons[1].startswith("20000 x 20000 pixels")
    for reason_, path in zip(reasons[2:], paths[2:], strict=True):
        assert reason_.startswith("15000 x 15000 pixels") or (path.suffix == ".webp" and "not an image" in reason_), path
    assert grown < 20_000, f"{grown} KiB"


@pytest.mark.parametrize("workers", [0, 2])
def test_training_puts_the_next_image_in_place_of_a_bad_one(tmp_path: Path, workers: int) -> None:
    root = folder(tmp_path)
    keys: dict[str, Any] = {
        "seed": 0,
        "start_step": 0,
        "steps": 4,
        "global_batch": 6,
        "micro_batch": 6,
        "rank": 0,
        "world": 1,
        "pin": False,
    }
    good = list(train_batches(dataset(root), workers=0, **keys))
    (root / "ant" / "5.png").write_text("<html>")
    (root / "bee" / "0.png").write_bytes(b"")
    damaged = dataset(root, max_bad=2)
    count = BadCount(2)
    indices: list[int] = []
    for (before,), (after,) in zip(good, train_batches(damaged, workers=workers, **keys), strict=True):
        count.add(after.bad)
        wanted = [7 if index in (5, 6) else index for index in before.indices.tolist()]
        assert after.indices.tolist() == wanted
        assert after.labels.tolist() == [damaged.listing.items[index].label for index in wanted]
        same = [place for place, index in enumerate(wanted) if index == before.indices[place]]
        assert (after.images[same] == before.images[same]).all()
        indices += wanted
    assert count.bad == {
        str(root / "ant" / "5.png"): "not an image that can be read here",
        str(root / "bee" / "0.png"): "the file is empty",
    }
    assert indices.count(7) == 6


@pytest.mark.parametrize("workers", [0, 2])
def test_evaluation_leaves_a_bad_image_out(tmp_path: Path, workers: int) -> None:
    root = folder(tmp_path)
    for index in range(4):
        (root / "ant" / f"{index}.png").write_bytes(b"")
    found = list(eval_batches(dataset(root, train=False, max_bad=4), batch=4, rank=0, world=1, workers=workers, pin=False))
    assert [batch.indices.tolist() for batch in found] == [[], [4, 5, 6, 7], [8, 9, 10, 11]]
    assert found[0].images.shape == (0, 3, 16, 16)
    assert [path for path, _ in found[0].bad] == [str(root / "ant" / f"{index}.png") for index in range(4)]


def test_the_count_of_bad_images() -> None:
    with pytest.raises(UserError, match=r"^a\.jpg: empty; mend or remove it, or set data\.max_bad"):
        BadCount(0).add([("a.jpg", "empty")])
    count = BadCount(2)
    count.add([("a.jpg", "empty"), ("a.jpg", "empty"), ("b.jpg", "html")])
    count.add([("a.jpg", "empty")])
    with pytest.raises(UserError, match=r"3 images cannot be read, more than data\.max_bad 2; the last: c\.jpg: torn"):
        count.add([("c.jpg", "torn")])


@pytest.mark.parametrize("workers", [0, 1])
def test_a_folder_of_bad_images_is_not_read_to_its_end(tmp_path: Path, workers: int) -> None:
    root = folder(tmp_path, 20)
    for path in root.rglob("*.png"):
        path.write_bytes(b"")
    keys: dict[str, Any] = {
        "seed": 0,
        "start_step": 0,
        "steps": 1,
        "global_batch": 2,
        "micro_batch": 2,
        "rank": 0,
        "world": 1,
        "pin": False,
    }
    with pytest.raises(
        UserError, match=r"4 images cannot be read, more than data\.max_bad 3; the last: .*png: the file is empty"
    ) as caught:
        list(train_batches(dataset(root, max_bad=3), workers=workers, **keys))
    assert "Traceback" not in str(caught.value)
    with pytest.raises(UserError, match="none of its 40 images can be read"):
        list(train_batches(dataset(root, max_bad=100), workers=workers, **keys))


def test_thin_images_come_through_every_transform(tmp_path: Path) -> None:
    root = folder(tmp_path, 1)
    for number, size in enumerate(((1, 1), (5000, 1), (1, 5000), (3, 700))):
        Image.new("RGB", size, (9, 90, 200)).save(root / "ant" / f"thin{number}.png")
    for resize in ("crop", "squash"):
        for crop in ("none", "pad", "resized"):
            augment = {"crop": crop, "flip": 0.5, "rotate": 10, "color": 0.2, "auto": "rand", "erase": 0.5}
            found = dataset(root, min_per_class=1, resize=resize, augment=augment)
            assert found.fetch([(0, index) for index in range(len(found))]).images.shape == (len(found), 3, 16, 16)
        plain = dataset(root, train=False, min_per_class=1, resize=resize).fetch([(0, index) for index in range(1, 5)])
        assert (plain.images.permute(0, 2, 3, 1) == plain.images.new_tensor([9, 90, 200])).all()


def test_what_cannot_be_augmented_is_said(tmp_path: Path) -> None:
    listing = open_splits(Data(train="digits"), 0).train
    grey = InputSpec(1, 16, (0.5,), (0.5,))
    for augment, spec, words in (
        (Augment(auto="trivial"), grey, "data.augment.auto is 'trivial': it works on 3 channels, but the network takes 1"),
        (Augment(color=0.1), InputSpec(4, 16, (0.5,) * 4, (0.5,) * 4), "works on 1 or 3 channels"),
        (Augment(crop="resized", scale=(0.5, 0.1)), grey, "data.augment.scale"),
    ):
        with pytest.raises(UserError) as caught:
            ImageDataset(listing, Data(train="digits", augment=augment), spec, train=True, seed=0)
        assert words in str(caught.value)
    with pytest.raises(UserError, match="less than the 16 pixels"):
        ImageDataset(listing, Data(train="digits", resize_to=8), grey, train=False, seed=0)
    with pytest.raises(UserError, match=r"in_channels is 2"):
        ImageDataset(listing, Data(train="digits"), InputSpec(2, 8, (0.5,) * 2, (0.5,) * 2), train=False, seed=0)
