"""`hf:FOLDER[/split]` or `hf:NAME[/split]`, `?image=COLUMN&label=COLUMN&split=…&config=…&weight=COLUMN&group=COLUMN`, and
`labels=` and `value=` as `formats.query.targets` says.

A folder is one that the datasets library's `save_to_disk` wrote, or one of Parquet files; a name is one of the Hugging Face hub,
looked for in the caches of huggingface_hub and of datasets. No code of a data set is ever run.
"""

from __future__ import annotations

import json
import os
import re
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from trainer.config.errors import UserError, nearest
from trainer.config.formats import arrow, places, query
from trainer.config.formats.said import Reading
from trainer.config.sources.listing import Item, Listing

_KEYS = ("image", *query.SAID, "split", "config", "weight", "group")
_IMAGES, _LABELS = ("image", "img", "picture", "jpg", "png"), ("label", "labels", "fine_label", "class", "target")
_WORDS = {"train": "train", "training": "train", "test": "test", "testing": "test", "val": "validation", "valid": "validation",
          "validation": "validation", "dev": "validation"}  # fmt: skip


def listing(rest: str) -> Listing:
    """The rows of a split in their order; ClassLabel's names are the classes, else the labels that occur. Raises UserError."""
    name, whole = query.parse("hf", rest, _KEYS)
    asked = whole.values
    root, files, where = _files(name, asked)
    columns, features = arrow.schema(root / files[0])
    image = _column(where, "image", asked, columns, features, "Image", _IMAGES)
    said = whole.said or (("label", _column(where, "label", asked, columns, features, "ClassLabel", _LABELS)),)
    named = {column: names for column in columns if (names := _names(features.get(column))) is not None}
    reading = Reading(where, query.targets(where, said, columns), _order(where, named), tuple(named))
    more = {what: _column(where, what, asked, columns, features, "", ()) for what in ("weight", "group") if what in asked}
    rows: list[tuple[str, Any, float, str]] = []
    for file in files:
        read = {column: arrow.column(root / file, column) for column in {*reading.columns, *more.values()}}
        for row, cells in enumerate(zip(*read.values(), strict=True)):
            values = dict(zip(read, cells, strict=True))
            key = f"{file}:{row}"
            found = reading.row(f"{where}: {key}", values)
            if reading.plain and found[0] is None:
                raise UserError(f"{where}: {key} has no label ({values[reading.columns[0]]}); choose a split with labels")
            weight = _weight(where, key, values[more["weight"]]) if "weight" in more else 1.0
            rows.append((key, found, weight, _text(values[more["group"]]) if "group" in more else ""))
    if not rows:
        raise UserError(f"{where}: no rows")
    targets, labels, numbers = reading.finish([row[1] for row in rows])
    items = tuple(
        Item(key, label, weight, group, values)
        for (key, _, weight, group), label, values in zip(rows, labels, numbers, strict=True)
    )
    classes = next((target.labels for target in targets if target.kind == "class"), ())
    return Listing("hf", root, classes, items, tuple(files), {"image": image}, targets)


def _weight(where: str, key: str, value: Any) -> float:
    if value is None:
        return 1.0
    if isinstance(value, bool) or not isinstance(value, int | float) or not 0 <= value < float("inf"):
        raise UserError(f"{where}: {key}: the weight is {value!r}; write a number from 0 on")
    return float(value)


def _text(value: Any) -> str:
    return "" if value is None else str(value)


def _names(feature: Any) -> list[str] | None:
    """The names of a ClassLabel, or of a list of them."""
    while isinstance(feature, list | dict):
        if isinstance(feature, list):
            feature = feature[0] if feature else None
        elif feature.get("names") is not None:
            return list(feature["names"])
        else:
            feature = feature.get("feature")
    return None


def _order(where: str, named: Mapping[str, list[str]]) -> Any:
    def order(column: str, labels: Iterable[Any]) -> tuple[tuple[str, ...], Mapping[Any, int]]:
        names = named.get(column)
        if names is None:
            values = set(labels)
            ordered = sorted(values) if len({type(value) for value in values}) == 1 else sorted(values, key=str)
            return tuple(str(value) for value in ordered), {value: index for index, value in enumerate(ordered)}
        if len(set(names)) < len(names):
            raise UserError(f"{where}: two classes of '{column}' have the same name")
        place: dict[Any, int] = {**{n: i for i, n in enumerate(names)}, **{i: i for i in range(len(names))}}
        for label in labels:
            if label not in place:
                raise UserError(f"{where}: '{column}': label {label} is out of range, there are {len(names)} classes")
        return tuple(names), place

    return order


def _column(where: str, what: str, asked: dict[str, str], columns: list[str], features: Any, kind: str, usual: Any) -> str:
    if what in asked:
        if asked[what] not in columns:
            raise UserError(f"{where}: no column '{asked[what]}'{nearest(asked[what], columns)}; it has {', '.join(columns)}")
        return asked[what]
    typed = [c for c in columns if (features.get(c) or {}).get("_type") == kind]
    found = typed if len(typed) == 1 else [c for c in usual if c in (typed or columns)][:1]
    if not found:
        raise UserError(f"{where}: which column is the {what}? It has {', '.join(columns)}; write ?{what}=COLUMN")
    return found[0]


def _files(name: str, asked: dict[str, str]) -> tuple[Path, list[str], str]:
    """(root, files below it, how it is called) of a source's split."""
    if not name:
        raise UserError("hf: names nothing; write hf:FOLDER, hf:FOLDER/train or hf:ORGANISATION/NAME/train")
    if places.is_local(name, Path()):
        folder = Path(name).expanduser()
        split = asked.get("split", "")
        if not folder.is_dir():
            folder, split = folder.parent, split or folder.name
        if not folder.is_dir():
            raise UserError(f"hf:{name}: no such folder{nearest(folder.name, _folders(folder.parent))}")
        return _in_folder(folder, split, asked.get("config"))
    parts = name.split("/")
    if len(parts) > 3 or not all(re.fullmatch(r"[\w.-]+", part) for part in parts):
        raise UserError(f"hf:{name}: no such folder, and no name of the hub; write hf:ORGANISATION/NAME/split")
    split = asked.get("split", parts[2] if len(parts) == 3 else "")
    return _in_cache("/".join(parts[:2]), split, asked.get("config"))


def _folders(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir() if path.is_dir()) if folder.is_dir() else []


def _in_folder(folder: Path, split: str, config: str | None) -> tuple[Path, list[str], str]:
    where = f"hf:{folder}"
    if (folder / "dataset_dict.json").is_file():
        names = json.loads((folder / "dataset_dict.json").read_text(encoding="utf-8"))["splits"]
        chosen = _split(where, split, names)
        return _saved(folder / chosen)
    if (folder / "state.json").is_file():
        if split:
            raise UserError(f"{where}: it holds one split without a name; leave '{split}' out")
        return _saved(folder)
    found: dict[str, list[str]] = {}
    for path in sorted(folder.rglob("*.parquet")):
        relative = path.relative_to(folder).as_posix()
        if config is None or config in relative.split("/")[:-1]:
            found.setdefault(_split_of(relative), []).append(relative)
    if not found:
        near = f" of config '{config}'" if config else ""
        raise UserError(f"{where}: neither saved by save_to_disk nor a folder of Parquet files{near}")
    files = found[_split(where, split, list(found))]
    tops = sorted({f.split("/")[0] for f in files if "/" in f} - {"data", *_WORDS})
    if len(tops) > 1 and config is None:
        raise UserError(f"{where}: several configurations, {', '.join(tops)}; write ?config=NAME")
    return folder, files, where


def _split_of(relative: str) -> str:
    """The split that a Parquet file belongs to, by its name as the hub has it."""
    match = re.fullmatch(r"(?:.*/)?([\w.]+)-\d{5}-of-\d{5}(?:-\w+)?\.parquet", relative)
    if match:
        return _WORDS.get(match[1], match[1])
    for word in reversed(re.split(r"[^A-Za-z]+", relative.removesuffix(".parquet").lower())):
        if word in _WORDS:
            return _WORDS[word]
    return "train"


def _split(where: str, split: str, names: list[str]) -> str:
    if not split and len(names) == 1:
        return names[0]
    found = split if split in names else _WORDS.get(split, split)
    if found not in names:
        said = f"no split '{split}'{nearest(split, names)}" if split else "which split?"
        raise UserError(f"{where}: {said}; it has {', '.join(names)}: write {where}/{names[0]}")
    return found


def _saved(folder: Path) -> tuple[Path, list[str], str]:
    """What `save_to_disk` wrote."""
    where = f"hf:{folder}"
    try:
        state = json.loads((folder / "state.json").read_text(encoding="utf-8"))
        files = [str(entry["filename"]) for entry in state["_data_files"]]
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise UserError(f"{where}: its state.json cannot be read: {error}") from None
    for file in files:
        if Path(file).name != file:
            raise UserError(f"{where}: state.json names '{file}', outside of the folder")
        if not (folder / file).is_file():
            raise UserError(f"{where}: {file} is missing; copy the whole folder")
    if not files:
        raise UserError(f"{where}: no rows")
    return folder, files, where


def _in_cache(name: str, split: str, config: str | None) -> tuple[Path, list[str], str]:
    """What `graft fetch` or the libraries brought of a data set of the hub."""
    repo = places.hub() / f"datasets--{name.replace('/', '--')}"
    for ref in ("main", "refs/convert/parquet"):
        pointer = repo / "refs" / ref
        if pointer.is_file():
            snapshot = repo / "snapshots" / pointer.read_text(encoding="utf-8").strip()
            if next(snapshot.rglob("*.parquet"), None) is not None:
                return _in_folder(snapshot, split, config)
    made = sorted(
        (places.prepared() / name.replace("/", "___")).glob(f"{config or '*'}/*/*/dataset_info.json"), key=os.path.getmtime
    )
    if made:
        folder = made[-1].parent
        pattern = re.compile(r".+?-(\w+?)(-\d{5}-of-\d{5})?\.arrow")
        found: dict[str, list[str]] = {}
        for path in sorted(folder.glob("*.arrow")):
            match = pattern.fullmatch(path.name)
            if match:
                found.setdefault(match[1], []).append(path.name)
        if found:
            return folder, found[_split(f"hf:{name}", split, list(found))], f"hf:{name}"
    raise UserError(f"hf:{name}: no such folder, and not in the local caches; `graft fetch RUN` brings it from the hub")
