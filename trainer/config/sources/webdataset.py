"""`webdataset:PATTERN?image=jpg;png&label=cls&classes=FILE`: samples in tar shards, `shards/{000..009}.tar`.

What is said of an image is one member (`label=cls`), or fields of its JSON: `label=json.species&labels=json.tags&value=json.age`.

Members that share the name up to the first dot are one sample. Each shard is indexed once (where its members lie), so that any
sample can be read at any time and the order is the run's own; the index is kept in the user's cache.
"""

from __future__ import annotations

import hashlib
import json
import os
import re
import tarfile
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from trainer.config.errors import UserError, nearest
from trainer.config.formats import places, query
from trainer.config.formats.said import Reading, Said, by_name
from trainer.config.sources.listing import Item, Listing

_IMAGES = "jpg;jpeg;png;webp;ppm;pgm;bmp;tif;tiff;gif"
_MOST = 65_536  # bytes of a label


def listing(rest: str) -> Listing:
    """The samples of all shards, shard by shard. Raises UserError that names the shard and the sample."""
    pattern, asked = query.parse("webdataset", rest, ("image", *query.SAID, "classes"))
    shards = expand(pattern)
    root = Path(os.path.commonpath([shard.parent for shard in shards]))
    endings = asked.values.get("image", _IMAGES).lower().split(";")
    where = f"webdataset:{pattern}"
    targets = query.targets(where, asked.said or (("label", "cls"),))
    fields = list(dict.fromkeys(column for one in targets for column in one.columns))
    ending = _ending(where, fields)
    order = _Order(root, asked.values.get("classes"), sum(one.kind == "class" for one in targets))
    reading = Reading(where, targets, order)
    found: list[tuple[str, Said]] = []
    spots: dict[str, tuple[str, int, int]] = {}
    for shard in shards:
        name = shard.relative_to(root).as_posix()
        for sample, members, text in _index(shard, ending.lower()):
            image = next((e for e in endings if e in members), None)
            if image is None:
                raise UserError(f"{shard}: sample '{sample}' has no image ({';'.join(endings)}), only {', '.join(members)}")
            if text is None:
                raise UserError(f"{shard}: sample '{sample}' has no label '{ending}'{nearest(ending, list(members))}")
            key = f"{name}/{sample}.{image}"
            said = reading.row(f"{shard}: sample '{sample}'", _cells(shard, sample, text, ending, fields, reading))
            if reading.plain:
                order.keys.setdefault(said[0], key)
                if said[0] is None:
                    raise UserError(f"{shard}: the label of '{sample}' is empty")
            found.append((key, said))
            spots[key] = (name, *members[image])
    if not found:
        raise UserError(f"{where}: the shards hold no samples")
    made, labels, numbers = reading.finish([said for _, said in found])
    items = tuple(Item(key, label, values=v) for (key, _), label, v in zip(found, labels, numbers, strict=True))
    classes = next((target.labels for target in made if target.kind == "class"), ())
    stored = tuple(s.relative_to(root).as_posix() for s in shards)
    return Listing("webdataset", root, classes, items, stored, {"places": spots}, made)


def _ending(where: str, fields: list[str]) -> str:
    """The one member that everything is read from: what stands before the first dot."""
    endings = {field.partition(".")[0] for field in fields}
    if len(endings) > 1:
        raise UserError(f"{where}: {' and '.join(sorted(endings))} are several members; what is said stands in one: json.FIELD")
    return endings.pop()


def expand(pattern: str) -> list[Path]:
    """The shards of a pattern with `{000..009}`, `{a,b}`, `*`; each must be there. Raises UserError."""
    if not pattern or pattern.startswith("pipe:") or "://" in pattern:
        raise UserError(f"webdataset:{pattern}: write files of this machine, such as webdataset:shards/{{000..009}}.tar")
    texts = [str(Path(pattern).expanduser())]
    while match := re.search(r"\{([^{}]*)\}", texts[0]):
        span = re.fullmatch(r"(\d+)\.\.(\d+)", match[1])
        if span and int(span[2]) < int(span[1]):
            raise UserError(f"webdataset:{pattern}: {match[0]} counts backwards; write {{{span[2]}..{span[1]}}}")
        values = [str(n).zfill(len(span[1])) for n in range(int(span[1]), int(span[2]) + 1)] if span else match[1].split(",")
        texts = [text.replace(match[0], value, 1) for text in texts for value in values]
    shards: list[Path] = []
    for text in texts:
        path = Path(text)
        found = sorted(path.parent.glob(path.name)) if set("*?[") & set(path.name) else [path]
        shards += [shard for shard in found if shard.is_file()]
        if not found or not all(shard.is_file() for shard in found):
            near = nearest(path.name, [p.name for p in path.parent.glob("*.tar")]) if path.parent.is_dir() else ""
            raise UserError(f"webdataset: {text}: no such shard{near}")
    repeated = next((shard for shard in shards if shards.count(shard) > 1), None) if len(set(shards)) < len(shards) else None
    if repeated:
        raise UserError(f"webdataset:{pattern}: {repeated} comes twice")
    return shards


def _index(shard: Path, label: str) -> list[tuple[str, dict[str, tuple[int, int]], str | None]]:
    """(sample, (offset, size) of its members by ending, the label's text) in the shard's order; from the cache, if it holds."""
    info = shard.stat()
    said = f"1|{shard.resolve()}|{info.st_size}|{info.st_mtime_ns}|{label}"
    kept = places.cache() / "webdataset" / f"{hashlib.sha256(said.encode('utf-8', 'surrogateescape')).hexdigest()[:32]}.json"
    try:
        raw = json.loads(kept.read_text(encoding="utf-8"))
        return [(sample, {e: (int(a), int(b)) for e, (a, b) in members.items()}, text) for sample, members, text in raw]
    except (OSError, ValueError, TypeError):
        pass
    found = _scan(shard, label, info.st_size)
    temporary = kept.with_suffix(f".{os.getpid()}.tmp")
    try:
        kept.parent.mkdir(parents=True, exist_ok=True)
        temporary.write_text(json.dumps(found), encoding="utf-8")
        temporary.replace(kept)
    except (OSError, UnicodeError):  # without a cache it is read again the next time
        temporary.unlink(missing_ok=True)
    return found


def _scan(shard: Path, label: str, size: int) -> list[tuple[str, dict[str, tuple[int, int]], str | None]]:
    samples: dict[str, tuple[dict[str, tuple[int, int]], list[str]]] = {}
    end = 0
    try:
        with tarfile.open(shard, "r:") as tar:
            for member in tar:
                end = member.offset_data + (member.size + 511) // 512 * 512
                match = re.fullmatch(r"((?:.*/)?[^./][^./]*)\.([^/]+)", member.name.removeprefix("./"))
                if not member.isfile() or match is None:
                    continue
                if end > size:
                    raise UserError(f"{shard}: truncated inside '{member.name}'; copy it again")
                ending = match[2].lower()
                members, text = samples.setdefault(match[1], ({}, []))
                if ending in members:
                    raise UserError(f"{shard}: '{member.name}' comes twice")
                members[ending] = (member.offset_data, member.size)
                if ending == label:
                    if member.size > _MOST:
                        raise UserError(f"{shard}: '{member.name}' has {member.size} bytes, too many for a label")
                    stream = tar.extractfile(member)
                    text.append(stream.read().decode("utf-8") if stream else "")
    except (tarfile.TarError, EOFError) as error:
        raise UserError(f"{shard}: {_broken(shard, error)}") from None
    except UnicodeDecodeError:
        raise UserError(f"{shard}: the label of '{member.name}' is not text") from None
    except OSError as error:
        raise UserError(f"{shard}: cannot be read: {error.strerror or error}") from None
    if size < end + 512:
        raise UserError(f"{shard}: truncated: it ends without an end mark; copy it again")
    return [(sample, members, text[0] if text else None) for sample, (members, text) in samples.items()]


def _broken(shard: Path, error: Exception) -> str:
    with shard.open("rb") as file:
        packed = file.read(2) in (b"\x1f\x8b", b"BZ", b"\xfd7", b"(\xb5")
    return "compressed; unpack it to a plain tar" if packed else f"truncated or no tar: {error}"


def _cells(shard: Path, sample: str, text: str, ending: str, fields: list[str], reading: Reading) -> dict[str, Any]:
    """What the sample's member says, by field; a field that a JSON object has not is unknown where there are several targets."""
    if ending != "json":
        return {field: text.strip() for field in fields}
    try:
        whole: Any = json.loads(text)
    except ValueError as error:
        raise UserError(f"{shard}: the json of '{sample}' cannot be read: {error}") from None
    cells: dict[str, Any] = {}
    for field in fields:
        value = whole
        for name in (field.partition(".")[2] or "label").split("."):
            if not isinstance(value, dict) or name not in value:
                if isinstance(value, dict) and not reading.plain:
                    value = None
                    break
                near = nearest(name, list(value)) if isinstance(value, dict) else ""
                raise UserError(f"{shard}: the json of '{sample}' has no '{name}'{near}; write ?label=json.FIELD")
            value = value[name]
        cells[field] = value
    return cells


class _Order:
    """Numbers classes by `?classes=FILE` or by classes.txt beside the shards, where there is one target with classes; else by
    name. `keys`: a sample of each label.
    """

    def __init__(self, root: Path, file: str | None, targets: int) -> None:
        path = Path(file).expanduser() if file else root / "classes.txt"
        self._path = path if path.is_absolute() or path.is_file() else root / path
        self._used = targets == 1
        self.keys: dict[Any, str] = {}
        if file and not self._used:
            raise UserError(f"webdataset: ?classes={file} names the classes of one target, and there are {targets}")
        if file and not self._path.is_file():
            raise UserError(f"webdataset: {self._path}: no such file of class names")

    def __call__(self, column: str, labels: Iterable[Any]) -> tuple[tuple[str, ...], Mapping[Any, int]]:
        found = set(labels)
        path = self._path
        if not self._used or not path.is_file():
            return by_name(column, found)
        numbers = all(re.fullmatch(r"\d+", str(label)) for label in found)
        names = [line.strip() for line in path.read_text(encoding="utf-8").splitlines() if line.strip()]
        if len(set(names)) < len(names):
            raise UserError(f"{path}: a class name stands there twice")
        place = {name: index for index, name in enumerate(names)}
        for label in sorted(found, key=str):
            text = str(label)
            if text not in place and not (numbers and int(text) < len(names)):
                why = f"out of range, there are {len(names)} classes" if numbers else f"none of them{nearest(text, names)}"
                of = f" of {self.keys[label]}" if label in self.keys else ""
                raise UserError(f"{path}: the label '{text}'{of} is {why}")
        return tuple(names), {label: place[str(label)] if str(label) in place else int(str(label)) for label in found}
