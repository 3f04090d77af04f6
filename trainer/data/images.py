"""Image files: the right pixels, or a refusal that names the file. Never silently damaged ones.

Pillow's plain `convert` clips 16-bit greys to white and floats to black, drops transparency and ignores how the camera was held;
each of these is put right here. JPEG carries no checksum: damage in its compressed data that still decodes cannot be seen.
"""

from __future__ import annotations

import io
import os
import warnings
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO, Literal

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image, ImageFile, UnidentifiedImageError
from PIL.TiffImagePlugin import TiffImageFile

from trainer.config.errors import UserError

Pixels = NDArray[np.uint8]
Decoder = Literal["pillow", "torchvision"]  # of JPEGs; Pillow reads all else

# Only these are tried: Pillow goes by the content, and one of its other readers starts Ghostscript. MPO comes with JPEG.
FORMATS = ("JPEG", "PNG", "BMP", "DIB", "GIF", "TIFF", "WEBP", "PPM")
_DEEP = ("I;16", "I;16B", "I;16L", "I;16N", "I")
_PHOTOMETRIC, _BITS = 262, 258
_TURNS = {
    2: Image.Transpose.FLIP_LEFT_RIGHT, 3: Image.Transpose.ROTATE_180, 4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE, 6: Image.Transpose.ROTATE_270, 7: Image.Transpose.TRANSVERSE, 8: Image.Transpose.ROTATE_90,
}  # fmt: skip
_LYING = [_TURNS[way] for way in (5, 6, 7, 8)]  # turns after which the width is the height


class BadImageError(UserError):
    """A file that is no readable image: `path` and `reason`."""

    def __init__(self, path: str, reason: str = "not a readable image") -> None:
        super().__init__(path, reason)
        self.path = path
        self.reason = reason

    def __str__(self) -> str:
        return f"{self.path}: {self.reason}"


class _Refused(Exception):  # noqa: N818 (a reason on its way to BadImageError)
    pass


def read(path: str | Path, channels: int, max_pixels: int, decoder: Decoder = "pillow") -> torch.Tensor:
    """The first picture of a file as uint8 [channels, height, width], turned upright.

    1 channel: grey (ITU-R 601 luma); 3: RGB; both with transparency laid over white; 4: RGBA; another number only from a file
    that has just so many. 16-bit greys and floats in [0, 1] are scaled to 8 bits. The size is checked before anything is
    decoded. Damaged metadata is ignored where the pixels do not depend on it. Raises BadImageError for everything else.
    """
    try:
        with _quiet(), open(path, "rb") as file:  # noqa: PTH123
            pixels = _decode(file, channels, max_pixels, decoder)
    except _Refused as refusal:
        raise BadImageError(os.fspath(path), str(refusal)) from None
    except FileNotFoundError:
        raise BadImageError(os.fspath(path), "no such file") from None
    except Exception as error:  # damaged files make Pillow's readers raise nearly anything
        raise BadImageError(os.fspath(path), _reason(Path(path), error)) from None
    return torch.from_numpy(pixels).permute(2, 0, 1)


def decode(data: bytes, name: str, channels: int, max_pixels: int, decoder: Decoder = "pillow") -> torch.Tensor:
    """The same as `read` for an encoded picture in memory; `name` is what a BadImageError calls it."""
    try:
        with _quiet():
            pixels = _decode(io.BytesIO(data), channels, max_pixels, decoder)
    except _Refused as refusal:
        raise BadImageError(name, str(refusal)) from None
    except Exception as error:  # as above
        known = isinstance(error, UnidentifiedImageError)
        wrong = ("not an image that can be read here" if data else "it is empty") if known else f"damaged: {error}"
        raise BadImageError(name, wrong) from None
    return torch.from_numpy(pixels).permute(2, 0, 1)


def sides(path: str | Path) -> tuple[int, int]:
    """Height and width of a file's picture as its header says them, upright; raises BadImageError where none can be read."""
    try:
        with _quiet(), open(path, "rb") as file:  # noqa: PTH123
            return _sides(file)
    except Exception as error:  # as above
        raise BadImageError(os.fspath(path), str(error)) from None


def sides_of(data: bytes, name: str) -> tuple[int, int]:
    """The same for an encoded picture in memory."""
    try:
        with _quiet():
            return _sides(io.BytesIO(data))
    except Exception as error:  # as above
        raise BadImageError(name, str(error)) from None


def _sides(file: IO[bytes]) -> tuple[int, int]:
    with Image.open(file, formats=FORMATS) as image:
        width, height = image.size
        if not width or not height:
            raise _Refused("no pixels")
        # Pillow says the size of a TIFF as it is when turned
        turned = not isinstance(image, TiffImageFile) and _turn(image) in _LYING
        return (width, height) if turned else (height, width)


def of_array(array: Pixels, name: str, channels: int) -> torch.Tensor:
    """uint8 [h, w] or [h, w, 3] to uint8 [channels, h, w], converted as `read` would."""
    try:
        pixels = _colours(Image.fromarray(array), channels)
    except _Refused as refusal:
        raise BadImageError(name, str(refusal)) from None
    return torch.from_numpy(pixels).permute(2, 0, 1)


def _reason(path: Path, error: Exception) -> str:
    if isinstance(error, UnidentifiedImageError):
        size = path.stat().st_size if path.is_file() else 0
        return "not an image that can be read here" if size else "the file is empty"
    if isinstance(error, OSError) and error.strerror:
        return error.strerror
    return f"damaged: {str(error) or type(error).__name__}"


@contextmanager
def _quiet() -> Iterator[None]:
    """Without Pillow's warnings (about metadata, which is judged here) and without its own size limit (ours comes first)."""
    limit = Image.MAX_IMAGE_PIXELS
    Image.MAX_IMAGE_PIXELS = None
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        Image.MAX_IMAGE_PIXELS = limit


def _decode(file: IO[bytes], channels: int, max_pixels: int, decoder: Decoder) -> Pixels:
    with Image.open(file, formats=FORMATS) as image:
        width, height = image.size
        if width * height > max_pixels:
            raise _Refused(f"{width} x {height} pixels, more than data.max_pixels {max_pixels}")
        if not width or not height:
            raise _Refused("no pixels")
        if image.format == "PNG":
            _check_png(file)
            _scale_key(image)
        plain = image.format == "JPEG" and image.mode in ("L", "RGB") and channels in (1, 3)
        if decoder == "torchvision" and plain and (found := _jpeg(file, image, channels)) is not None:
            return found
        to_array = _deep if image.mode in _DEEP else _floats if image.mode == "F" else None
        if to_array is not None and isinstance(image, TiffImageFile) and image.tag_v2.get(_PHOTOMETRIC) == 0:
            raise _Refused("a TIFF whose zero is white, in more than 8 bits; save it with zero as black")
        image.load()
        upright = _upright(image)
        if to_array is not None:
            return _spread(to_array(upright, image), channels)
        return _colours(upright, channels)


def _jpeg(file: IO[bytes], image: Image.Image, channels: int) -> Pixels | None:
    """A JPEG of greys or colours by torchvision's decoder; none where it makes something of another kind than Pillow would."""
    from torchvision.io import ImageReadMode, decode_jpeg

    if (image.mode == "L") != (channels == 1) or _turn(image) is not None:
        return None  # what is to be turned or to lose its colours, Pillow does
    place = file.tell()
    file.seek(0)
    data = torch.frombuffer(bytearray(file.read()), dtype=torch.uint8)
    file.seek(place)
    found = decode_jpeg(data, mode=ImageReadMode.GRAY if channels == 1 else ImageReadMode.RGB)
    return np.asarray(found.permute(1, 2, 0).numpy())


def _turn(image: Image.Image) -> Image.Transpose | None:
    """How EXIF says that it is to be turned; damaged EXIF says nothing."""
    try:
        return _TURNS.get(image.getexif().get(0x0112, 1))
    except Exception:  # what is raised here depends on the damage
        return None


def _upright(image: Image.Image) -> Image.Image:
    """Turned as EXIF says (Pillow has already turned a TIFF)."""
    turn = _turn(image)
    return image if turn is None else image.transpose(turn)


def _colours(image: Image.Image, channels: int) -> Pixels:
    """8-bit images of every mode."""
    if channels not in (1, 3, 4):
        bands = image.getbands()
        if len(bands) != channels or image.mode == "P":
            raise _Refused(f"{len(bands)} channels ({image.mode}), but the network takes {channels}")
        return np.array(image)
    if image.mode in ("PA", "La", "RGBa"):
        image = image.convert({"La": "LA"}.get(image.mode, "RGBA"))
    if image.mode in ("LA", "RGBA") or "transparency" in image.info:
        image = image.convert("RGBA")
        if channels == 4:
            return np.array(image)
        image = Image.alpha_composite(Image.new("RGBA", image.size, "white"), image).convert("RGB")
    mode = {1: "L", 3: "RGB", 4: "RGBA"}[channels]
    if image.mode not in ("1", "L", "RGB", mode):
        image = image.convert("RGB")
    array = np.array(image if image.mode == mode else image.convert(mode))
    return array[:, :, None] if channels == 1 else array


def _scale_key(image: ImageFile.ImageFile) -> None:
    """Make a PNG's transparent colour a value of the decoded pixels; Pillow gives that of the file."""
    key = image.info.get("transparency")
    raw = str(image.tile[0][3])
    if isinstance(key, int):
        image.info["transparency"] = key * {"L;2": 85, "L;4": 17}.get(raw, 1)
    elif isinstance(key, tuple) and raw.endswith("16B"):
        raise _Refused("16-bit colours with a transparent one; save it in 8 bits or with an alpha channel")


def _deep(image: Image.Image, opened: Image.Image) -> Pixels:
    """Greys of up to 16 bits to [h, w, 1]: round(value / 257), so that 65535 becomes 255."""
    values = np.asarray(image).astype(np.int64 if image.mode == "I" else np.int32)
    top = 65535
    if isinstance(opened, TiffImageFile):
        bits = opened.tag_v2.get(_BITS, (16,))[0]
        top = 4095 if bits == 12 else 65535
        if bits == 32 and values.min() >= 0 and values.max() <= 255:
            raise _Refused(f"32-bit whole numbers up to {values.max()}: it cannot be told what is white; save it in 8 or 16 bits")
    if values.min() < 0 or values.max() > top:
        raise _Refused(f"whole numbers from {values.min()} to {values.max()}, beyond 16 bits; save it in 8 or 16 bits")
    grey = (values * 255 + top // 2) // top
    if isinstance(opened.info.get("transparency"), int):
        grey[values == opened.info["transparency"]] = 255
    return grey.astype(np.uint8)[:, :, None]


def _floats(image: Image.Image, opened: Image.Image) -> Pixels:
    """Floats in [0, 1] to [h, w, 1]."""
    values = np.asarray(image)
    if not np.isfinite(values).all():
        raise _Refused("floating-point pixels with NaN or infinity")
    if values.min() < 0 or values.max() > 1:
        raise _Refused(f"floating-point pixels from {values.min():g} to {values.max():g}; only [0, 1] has a known white")
    return np.rint(values * np.float32(255)).astype(np.uint8)[:, :, None]


def _spread(grey: Pixels, channels: int) -> Pixels:
    """[h, w, 1] to as many channels, opaque."""
    if channels not in (1, 3, 4):
        raise _Refused(f"1 channel, but the network takes {channels}")
    array = np.repeat(grey, channels, axis=2)
    if channels == 4:
        array[:, :, 3] = 255
    return array


def _check_png(file: IO[bytes]) -> None:
    """Compare the checksums of the chunks that pixels depend on, which Pillow skips for the pixels themselves."""
    place = file.tell()
    file.seek(8)
    try:
        while True:
            head = file.read(8)
            if len(head) < 8:
                raise _Refused("truncated: the file ends before its end mark")
            length, name = int.from_bytes(head[:4], "big"), head[4:]
            critical = name[0] & 0x20 == 0 or name == b"tRNS"
            checksum = zlib.crc32(name)
            while length:
                block = file.read(min(length, 1 << 20))
                if not block:
                    raise _Refused("truncated: the file ends inside its pixels")
                length -= len(block)
                checksum = zlib.crc32(block, checksum) if critical else 0
            if file.read(4) != checksum.to_bytes(4, "big") and critical:
                raise _Refused(f"damaged: the checksum of its {name.decode('latin-1')} part is wrong")
            if name == b"IEND":
                return
    finally:
        file.seek(place)
