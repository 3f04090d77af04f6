"""`folder:PATH`: one folder a class; the images lie in it or anywhere below it."""

from __future__ import annotations

import json
import os
from pathlib import Path

from trainer.config.errors import UserError, nearest
from trainer.config.sources.listing import Item, Listing

SUFFIXES = (".jpg", ".jpeg", ".png", ".bmp", ".gif", ".tif", ".tiff", ".webp", ".ppm", ".pgm")
_TRAIN = ("train", "training")
_SPLITS = {*_TRAIN, "val", "valid", "validation", "test"}


def listing(rest: str) -> Listing:
    """The images below each class folder of PATH, sorted; hidden files and other files are left out. Raises UserError."""
    root = Path(rest).expanduser()
    if not rest:
        raise UserError("folder: names no folder; write folder:PATH")
    if not root.is_dir():
        if root.exists():
            raise UserError(f"{root}: a file, not a folder of classes")
        parent = root.parent
        near = nearest(root.name, _folders(parent)) if parent.is_dir() else f"; nor is there {parent}"
        raise UserError(f"{root}: no such folder{near}")
    classes = _folders(root)
    if not classes:
        loose = sum(_is_image(name) for name in _names(root))
        what = f"{loose} images lie directly in it" if loose else "it is empty of folders"
        raise UserError(f"{root}: no class folders, {what}; put the images of each class into a folder with its name")
    if len(classes) > 1 and {c.lower() for c in classes} <= _SPLITS:
        train = next((c for c in classes if c.lower() in _TRAIN), classes[0])
        raise UserError(f"{root}: its folders {', '.join(classes)} look like splits, not classes; write folder:{root / train}")
    items: list[Item] = []
    for label, name in enumerate(classes):
        keys = _images(root / name, name, ())
        if not keys:
            raise UserError(f"{root / name}: class '{name}' is empty: no image with one of the endings {' '.join(SUFFIXES)}")
        items += [Item(key, label) for key in keys]
    items.sort(key=lambda item: item.key)
    return Listing("folder", root, tuple(classes), tuple(items))


def flat(rest: str) -> Listing:
    """All images of PATH, directly in it or anywhere below it, of one class. Raises UserError."""
    root = Path(rest).expanduser()
    if not rest or not root.is_dir():
        return listing(rest)  # which says what is wrong
    keys = sorted(key.removeprefix("./") for key in _images(root, ".", ()))
    if not keys:
        raise UserError(f"{root}: no image in it or below it, with one of the endings {' '.join(SUFFIXES)}")
    return Listing("folder", root, ("images",), tuple(Item(key, 0) for key in keys))


def captions(rest: str) -> Listing:
    """The images of PATH with a text each, as classes: those of `metadata.jsonl` in it, or the names of the class folders.

    A line of the file is an object with `file_name`, relative to PATH, and `text` (or `caption`). Raises UserError with the line,
    or for images without a caption.
    """
    root = Path(rest).expanduser()
    file = root / "metadata.jsonl"
    if not rest or not file.is_file():
        return listing(rest)
    keys = {item.key for item in flat(rest).items}
    texts: dict[str, str] = {}
    try:
        lines = file.read_text(encoding="utf-8").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(f"{file}: cannot be read: {error}") from None
    for number, line in enumerate(lines, 1):
        if line.strip():
            key, text = _caption(f"{file}, line {number}", line)
            if key not in keys:
                raise UserError(f"{file}, line {number}: no such image here: {key}{nearest(key, keys)}")
            if texts.setdefault(key, text) != text:
                raise UserError(f"{file}, line {number}: another text of {key} than before")
    lost = sorted(keys - texts.keys())
    if lost:
        raise UserError(f"{file}: {len(lost)} of {len(keys)} images have no line, {lost[0]} for one; add them, or move them away")
    found = sorted(set(texts.values()))
    places = {text: index for index, text in enumerate(found)}
    return Listing("folder", root, tuple(found), tuple(Item(key, places[texts[key]]) for key in sorted(keys)))


def _caption(at: str, line: str) -> tuple[str, str]:
    """The image and the text of a line. Raises UserError that begins with `at`."""
    try:
        said = json.loads(line)
    except ValueError as error:
        raise UserError(f"{at}: not JSON: {error}") from None
    said = said if isinstance(said, dict) else {}
    name, text = said.get("file_name"), said.get("text", said.get("caption"))
    if not isinstance(name, str) or not isinstance(text, str):
        raise UserError(f'{at}: write {{"file_name": "image.png", "text": "what it shows"}}')
    return os.path.normpath(name), text


def _is_image(name: str) -> bool:
    return name.lower().endswith(SUFFIXES) and not name.startswith(".")


def _names(folder: Path) -> list[str]:
    try:
        return [path.name for path in folder.iterdir()]
    except OSError as error:
        raise UserError(f"{folder}: cannot be listed: {error.strerror}") from None


def _folders(folder: Path) -> list[str]:
    return sorted(name for name in _names(folder) if not name.startswith(".") and (folder / name).is_dir())


def _images(folder: Path, prefix: str, above: tuple[tuple[int, int], ...]) -> list[str]:
    """Keys of the images at any depth. Links are followed, but not into a folder that is being walked."""
    info = folder.stat()
    this = (info.st_dev, info.st_ino)
    if this in above:
        return []
    keys: list[str] = []
    try:
        entries = os.scandir(folder)
    except OSError as error:
        raise UserError(f"{folder}: cannot be listed: {error.strerror}") from None
    with entries:
        for entry in entries:
            if entry.name.startswith("."):
                continue
            if entry.is_dir():
                keys += _images(folder / entry.name, f"{prefix}/{entry.name}", (*above, this))
            elif _is_image(entry.name):
                keys.append(f"{prefix}/{entry.name}")
    return keys
