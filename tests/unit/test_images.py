"""Pixels of real files in every mode: compared with what the format says, to the value."""

from __future__ import annotations

import pickle
import struct
import zlib
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from PIL import Image, PngImagePlugin

from trainer.data.images import BadImageError, read

LIMIT = 1_000_000
RNG = np.random.default_rng(0)
COLOUR = RNG.integers(0, 256, (5, 7, 3), dtype=np.uint8)
GREY = RNG.integers(0, 256, (5, 7), dtype=np.uint8)
ALPHA = RNG.integers(0, 256, (5, 7), dtype=np.uint8)


def pixels(path: Path, channels: int = 3) -> NDArray[np.uint8]:
    """[h, w, c] as `read` gives it."""
    image = read(path, channels, LIMIT)
    assert image.dtype == torch.uint8
    assert image.shape[0] == channels
    return image.permute(1, 2, 0).numpy()


def bad(path: Path, channels: int = 3, limit: int = LIMIT) -> str:
    with pytest.raises(BadImageError) as caught:
        read(path, channels, limit)
    assert caught.value.path == str(path)
    assert str(caught.value) == f"{path}: {caught.value.reason}"
    return caught.value.reason


def save(image: Image.Image, path: Path, **options: Any) -> None:
    image.save(path, **options)


def luma(rgb: NDArray[np.uint8]) -> NDArray[np.int64]:
    """ITU-R 601: 0.299 R + 0.587 G + 0.114 B."""
    return np.rint(rgb.astype(np.float64) @ (0.299, 0.587, 0.114)).astype(np.int64)


def over_white(rgb: NDArray[np.uint8], alpha: NDArray[np.uint8]) -> NDArray[np.float64]:
    a = alpha[..., None] / 255
    return rgb * a + 255 * (1 - a)


def near(found: NDArray[np.uint8], wanted: NDArray[np.generic], by: float = 1.0) -> None:
    assert found.shape == wanted.shape
    assert np.abs(found.astype(np.float64) - wanted.astype(np.float64)).max() <= by


def png(path: Path, depth: int, colour: int, rows: list[bytes], width: int, extra: bytes = b"") -> Path:
    """A PNG written by hand, for what Pillow cannot write."""

    def chunk(name: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + name + data + struct.pack(">I", zlib.crc32(name + data))

    head = struct.pack(">IIBBBBB", width, len(rows), depth, colour, 0, 0, 0)
    data = zlib.compress(b"".join(b"\0" + row for row in rows))
    more = chunk(b"tRNS", extra) if extra else b""
    path.write_bytes(b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", head) + more + chunk(b"IDAT", data) + chunk(b"IEND", b""))
    return path


@pytest.mark.parametrize("suffix", ["png", "bmp", "tif", "webp", "ppm"])
def test_rgb_without_loss(tmp_path: Path, suffix: str) -> None:
    path = tmp_path / f"x.{suffix}"
    save(Image.fromarray(COLOUR), path, **({"lossless": True} if suffix == "webp" else {}))
    assert (pixels(path) == COLOUR).all()
    near(pixels(path, 1)[..., 0], luma(COLOUR))
    assert (pixels(path, 4)[..., :3] == COLOUR).all()
    assert (pixels(path, 4)[..., 3] == 255).all()


def test_the_content_counts_and_not_the_ending(tmp_path: Path) -> None:
    Image.fromarray(COLOUR).save(tmp_path / "x.png")
    assert (pixels((tmp_path / "x.png").rename(tmp_path / "x.jpg")) == COLOUR).all()


@pytest.mark.parametrize("suffix", ["png", "gif", "tif", "pgm"])
def test_grey(tmp_path: Path, suffix: str) -> None:
    path = tmp_path / f"x.{suffix}"
    Image.fromarray(GREY).save(path)
    assert (pixels(path, 1)[..., 0] == GREY).all()
    assert (pixels(path, 3) == GREY[..., None]).all()


def test_jpeg_grey_and_cmyk(tmp_path: Path) -> None:
    smooth = np.broadcast_to(np.linspace(20, 230, 64, dtype=np.uint8), (64, 64))
    Image.fromarray(smooth).save(tmp_path / "g.jpg", quality=95)
    near(pixels(tmp_path / "g.jpg"), np.repeat(smooth[..., None], 3, axis=2), 4)
    for rgb in ((200, 30, 60), (0, 0, 0), (255, 255, 255), (10, 200, 90)):
        cmyk = Image.new("RGB", (16, 16), rgb).convert("CMYK")
        for name in ("c.jpg", "c.tif"):
            cmyk.save(tmp_path / name)
            near(pixels(tmp_path / name), np.full((16, 16, 3), rgb), 3)
        near(pixels(tmp_path / "c.jpg", 1)[..., 0], luma(np.full((16, 16, 3), rgb, dtype=np.uint8)), 3)


@pytest.mark.parametrize("suffix", ["png", "tif", "webp"])
def test_transparency_is_laid_over_white(tmp_path: Path, suffix: str) -> None:
    path = tmp_path / f"x.{suffix}"
    rgba = np.dstack([COLOUR, ALPHA])
    save(Image.fromarray(rgba), path, **({"lossless": True, "exact": True} if suffix == "webp" else {}))
    near(pixels(path), over_white(COLOUR, ALPHA))
    assert (pixels(path, 4) == rgba).all()


def test_grey_with_alpha(tmp_path: Path) -> None:
    path = tmp_path / "la.png"
    Image.fromarray(np.dstack([GREY, ALPHA])).save(path)
    grey = np.repeat(GREY[..., None], 3, axis=2)
    near(pixels(path), over_white(grey, ALPHA))
    near(pixels(path, 1), over_white(grey, ALPHA)[..., :1])
    assert (pixels(path, 2) == np.dstack([GREY, ALPHA])).all()


def test_palette_with_and_without_transparency(tmp_path: Path) -> None:
    palette = Image.fromarray(COLOUR).quantize(200)
    plain = np.array(palette.convert("RGB"))
    palette.save(tmp_path / "p.png")
    assert (pixels(tmp_path / "p.png") == plain).all()
    entries = np.array(palette)
    one = int(entries[0, 0])
    palette.save(tmp_path / "one.png", transparency=one)
    wanted = np.where((entries == one)[..., None], 255, plain)
    assert (pixels(tmp_path / "one.png") == wanted).all()
    alphas = RNG.integers(0, 256, 200, dtype=np.uint8)
    palette.save(tmp_path / "many.png", transparency=alphas.tobytes())
    near(pixels(tmp_path / "many.png"), over_white(plain, alphas[entries]))
    palette.save(tmp_path / "t.gif", transparency=one)
    assert (pixels(tmp_path / "t.gif")[0, 0] == 255).all()


def test_a_transparent_colour(tmp_path: Path) -> None:
    Image.fromarray(COLOUR).save(tmp_path / "rgb.png", transparency=tuple(COLOUR[1, 1].tolist()))
    wanted = COLOUR.copy()
    wanted[1, 1] = 255
    assert (pixels(tmp_path / "rgb.png") == wanted).all()
    four = png(tmp_path / "4.png", 4, 0, [bytes([0x01, 0x2F])] * 2, 4, extra=b"\x00\x02")
    assert pixels(four, 1)[0, :, 0].tolist() == [0, 17, 255, 255]
    deep = png(tmp_path / "16.png", 16, 0, [struct.pack(">3H", 0, 257, 300)], 3, extra=struct.pack(">H", 257))
    assert pixels(deep, 1)[0, :, 0].tolist() == [0, 255, 1]
    colours = png(tmp_path / "48.png", 16, 2, [struct.pack(">3H", 0, 257, 65535)], 1, extra=struct.pack(">3H", 0, 257, 65535))
    assert "16-bit colours with a transparent one" in bad(colours)


def test_few_bits(tmp_path: Path) -> None:
    bits = GREY > 127
    for name in ("1.png", "1.tif", "1.bmp"):
        Image.fromarray(bits).save(tmp_path / name)
        assert (pixels(tmp_path / name) == np.where(bits, 255, 0)[..., None]).all()
    two = png(tmp_path / "2.png", 2, 0, [bytes([0b00011011])], 4)
    assert pixels(two, 1)[0, :, 0].tolist() == [0, 85, 170, 255]


def test_16_bit_greys_are_scaled(tmp_path: Path) -> None:
    """torchvision's default loader clips them: everything above 255 becomes white."""
    values = np.array([[0, 128, 129, 257, 300], [32767, 32768, 65000, 65406, 65535]], dtype=np.uint16)
    wanted = np.rint(values / 257).astype(np.uint8)
    for name in ("x.png", "x.tif", "x.pgm"):
        Image.fromarray(values).save(tmp_path / name)
        assert (pixels(tmp_path / name, 1)[..., 0] == wanted).all()
        assert (pixels(tmp_path / name, 3) == wanted[..., None]).all()
        assert (pixels(tmp_path / name, 4)[..., 3] == 255).all()
    data = tiff(">", values.astype(">u2").tobytes(), 5, 2, 16)
    (tmp_path / "big.tif").write_bytes(data)
    assert (pixels(tmp_path / "big.tif", 1)[..., 0] == wanted).all()
    colour = png(tmp_path / "48.png", 16, 2, [struct.pack(">6H", 0, 257, 65535, 32896, 300, 1000)], 2)
    near(pixels(colour), np.array([[[0, 1, 255], [128, 1, 4]]]))


def tiff(
    order: str, data: bytes, width: int, height: int, bits: int, photometric: int = 1, kind: int = 1, turn: int = 1
) -> bytes:
    """A grey TIFF written by hand, its pixels at the end."""
    tags = {256: width, 257: height, 258: bits, 259: 1, 262: photometric, 273: 0, 274: turn, 277: 1, 278: height, 279: len(data)}
    tags[339] = kind
    tags[273] = 8 + 2 + 12 * len(tags) + 4
    out = struct.pack(order + "2sHI", b"II" if order == "<" else b"MM", 42, 8) + struct.pack(order + "H", len(tags))
    for tag, value in tags.items():
        out += struct.pack(order + "HHII", tag, 4, 1, value)
    return out + struct.pack(order + "I", 0) + data


def test_tiff_of_other_kinds(tmp_path: Path) -> None:
    path = tmp_path / "x.tif"
    two = np.array([[0, 65535]], dtype="<u2").tobytes()
    path.write_bytes(tiff("<", two, 2, 1, 16, photometric=0))
    assert "zero is white" in bad(path)
    path.write_bytes(tiff("<", bytes([0, 8, 255]), 3, 1, 8, photometric=0))
    assert pixels(path, 1)[0, :, 0].tolist() == [255, 247, 0]
    path.write_bytes(tiff("<", bytes([0x00, 0x0F, 0xFF]), 2, 1, 12))
    assert pixels(path, 1)[0, :, 0].tolist() == [0, 255]
    path.write_bytes(tiff("<", np.array([[0, 65535]], dtype="<u4").tobytes(), 2, 1, 32))
    assert pixels(path, 1)[0, :, 0].tolist() == [0, 255]
    path.write_bytes(tiff("<", np.array([[0, 65536]], dtype="<u4").tobytes(), 2, 1, 32))
    assert "from 0 to 65536, beyond 16 bits" in bad(path)
    path.write_bytes(tiff("<", np.array([[0, 255]], dtype="<u4").tobytes(), 2, 1, 32))
    assert "32-bit whole numbers up to 255" in bad(path)
    path.write_bytes(tiff("<", np.array([[-1, 255]], dtype="<i2").tobytes(), 2, 1, 16, kind=2))
    assert "from -1 to 255" in bad(path)


def test_floats_between_0_and_1(tmp_path: Path) -> None:
    """torchvision's default loader makes them black."""
    path = tmp_path / "x.tif"
    values = np.array([[0.0, 0.25, 0.5, 1.0]], dtype=np.float32)
    Image.fromarray(values).save(path)
    assert pixels(path, 1)[0, :, 0].tolist() == [0, 64, 128, 255]
    assert pixels(path, 3)[0, :, 2].tolist() == [0, 64, 128, 255]
    Image.fromarray(values * 255).save(path)
    assert "from 0 to 255; only [0, 1]" in bad(path)
    for wrong in (np.nan, np.inf):
        Image.fromarray(np.array([[0.5, wrong]], dtype=np.float32)).save(path)
        assert "NaN or infinity" in bad(path)


@pytest.mark.parametrize("turn", range(1, 9))
@pytest.mark.parametrize("suffix", ["jpg", "png", "webp", "tif"])
def test_exif_orientation(tmp_path: Path, turn: int, suffix: str) -> None:
    """The picture is upright again: stored turned by the inverse, read as it was."""
    upright = np.zeros((16, 32, 3), dtype=np.uint8)
    upright[:8, :8], upright[:8, 24:], upright[8:, :16] = (255, 0, 0), (0, 255, 0), (0, 0, 255)
    stored = {1: upright, 2: upright[:, ::-1], 3: upright[::-1, ::-1], 4: upright[::-1], 5: upright.transpose(1, 0, 2),
              6: np.rot90(upright), 7: np.rot90(upright, 2).transpose(1, 0, 2), 8: np.rot90(upright, -1)}[turn]  # fmt: skip
    exif = Image.Exif()
    exif[0x0112] = turn
    path = tmp_path / f"x.{suffix}"
    options: dict[str, dict[str, Any]] = {"jpg": {"quality": 95, "subsampling": 0}, "webp": {"lossless": True}}
    save(Image.fromarray(np.ascontiguousarray(stored)), path, exif=exif, **options.get(suffix, {}))
    near(pixels(path), upright, 40 if suffix == "jpg" else 0)


def test_turned_16_bit_and_damaged_exif(tmp_path: Path) -> None:
    path = tmp_path / "x.tif"
    path.write_bytes(tiff("<", np.array([[0, 65535]], dtype="<u2").tobytes(), 2, 1, 16, turn=6))
    assert pixels(path, 1)[..., 0].tolist() == [[0], [255]]
    flat = np.full((8, 8, 3), 90, dtype=np.uint8)
    for number, exif in enumerate((b"Exif\0\0II*\0\xff\xff\xff\xff", b"Exif\0\0garbage", b"Exif\0\0II*\0\x08\0\0\0\xff\xff")):
        Image.fromarray(flat).save(tmp_path / f"{number}.jpg", exif=exif)
        near(pixels(tmp_path / f"{number}.jpg"), flat, 2)


@pytest.mark.parametrize("suffix", ["gif", "png", "webp", "tif"])
def test_animations_give_their_first_frame(tmp_path: Path, suffix: str) -> None:
    frames = [Image.new("RGB", (6, 4), colour) for colour in ("red", "lime", "blue")]
    path = tmp_path / f"x.{suffix}"
    save(frames[0], path, save_all=True, append_images=frames[1:], **({"lossless": True} if suffix == "webp" else {}))
    assert (pixels(path) == (255, 0, 0)).all()


@pytest.mark.parametrize("size", [(1, 1), (5000, 1), (1, 5000)])
def test_thin_images(tmp_path: Path, size: tuple[int, int]) -> None:
    Image.new("RGB", size, (1, 2, 3)).save(tmp_path / "x.png")
    assert (pixels(tmp_path / "x.png") == (1, 2, 3)).all()
    assert pixels(tmp_path / "x.png").shape == (size[1], size[0], 3)


def test_other_channel_counts(tmp_path: Path) -> None:
    Image.fromarray(COLOUR).save(tmp_path / "x.png")
    assert bad(tmp_path / "x.png", 2) == "3 channels (RGB), but the network takes 2"
    assert bad(tmp_path / "x.png", 5) == "3 channels (RGB), but the network takes 5"
    Image.fromarray(GREY.astype(np.uint16)).save(tmp_path / "x.tif")
    assert bad(tmp_path / "x.tif", 2) == "1 channel, but the network takes 2"


def test_large_text_and_profiles_do_no_harm(tmp_path: Path) -> None:
    """A PNG whose comment unpacks to 64 MB: Pillow refuses that itself, and so is the file."""
    info = PngImagePlugin.PngInfo()
    info.add_text("c", "x" * 70_000_000, zip=True)
    Image.fromarray(COLOUR).save(tmp_path / "x.png", pnginfo=info)
    assert "damaged" in bad(tmp_path / "x.png")


def test_the_error_survives_a_pickle() -> None:
    error = pickle.loads(pickle.dumps(BadImageError("a.jpg", "empty")))
    assert (str(error), error.path, error.reason, error.code) == ("a.jpg: empty", "a.jpg", "empty", 2)


def test_pillow_is_left_as_it_was(tmp_path: Path) -> None:
    before = Image.MAX_IMAGE_PIXELS
    Image.fromarray(COLOUR).save(tmp_path / "x.png")
    read(tmp_path / "x.png", 3, LIMIT)
    bad(tmp_path / "no.png")
    assert before is not None
    assert before == Image.MAX_IMAGE_PIXELS
