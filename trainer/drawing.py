"""The images that a generator's untouched weights draw before a training: batch by batch, once for all attempts."""

from __future__ import annotations

import contextlib
import hashlib
import itertools
import json
import logging
import os
import shutil
from collections.abc import Callable, Container, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

from trainer.config import GraftError, Run, UserError
from trainer.config.prior import Prior
from trainer.config.sources import Item, Listing
from trainer.data import BadImageError, images
from trainer.faultpoints import reached
from trainer.gallery import picture
from trainer.generate.share import share
from trainer.models import Built
from trainer.references import fingerprint, still
from trainer.rundir.folder import fsync_folder, write_atomically
from trainer.runtime import Runtime
from trainer.shortage import fewer_made, short, told
from trainer.tasks.base import Generates
from trainer.tasks.sampler import Plan
from trainer.track.work import WorkShown

log = logging.getLogger("graft")
_NOTE = "drawn.json"  # what the images are of, and once all are there a sha256 of each


@dataclass(frozen=True)
class Known:
    """The images of a prior, numbered as the task is told of them, and a sha256 of what they are."""

    listing: Listing
    digest: str


def numbered(listing: Listing, numbers: Sequence[int], task: Generates) -> Listing:
    """The samples with the numbers that the task knows their classes or texts by."""
    items = tuple(replace(item, label=numbers[item.label]) for item in listing.items)
    return replace(listing, classes=tuple(task.word(n) for n in range(max(numbers) + 1)), items=items, targets=())


class Drawing:
    """Draws the images of a prior into a folder that all ranks see, shared among them.

    Image i has seed `prior.seed + i` and shows word i modulo their number. A file appears under its name when it is whole, and
    the note that makes them complete when all are there: who is killed in between goes on with what is missing. A batch is
    always made of the same images, so that none depends on the number of ranks.

    A run that goes on from a checkpoint (`resumed`) has learnt of its images: those that show what is asked for stay, by whatever
    plan and in whatever batches they were drawn (what `task.samples` says may change between attempts), and one that is lost is
    drawn as it was, and nothing else is written. Where other images are asked for, they are put aside and not deleted.
    `beside`: fingerprints of the networks that draw together with the one that learns.
    """

    def __init__(
        self, folder: Path, run: Run, prior: Prior, task: Generates, runtime: Runtime, *, resumed: bool,
        beside: Mapping[str, str],
    ) -> None:  # fmt: skip
        self._folder, self._run, self._prior, self._task, self._runtime = folder, run, prior, task, runtime
        self._resumed = resumed
        self._batch = int(getattr(run.task, "samples").batch)  # noqa: B009 (of every task that generates)
        self._plan = task.plan()
        self._names = [f"{number:06d}.png" for number in range(prior.count)]
        shows = {"images": prior.count, "seed": prior.seed, "words": prior.words, "image": list(task.image())}
        self._about: dict[str, Any] = {**shows, "batch": self._batch, "plan": asdict(self._plan)}
        self._beside = dict(beside)
        note: dict[str, Any] = self._on_main(self._note) if resumed else {}
        if all(note.get(key, value) == value for key, value in shows.items()):
            with contextlib.suppress(KeyError, TypeError, ValueError):  # of a note that is not ours
                self._batch, self._plan = int(note["batch"]), Plan(**note["plan"])
                self._about = {key: value for key, value in note.items() if key not in ("files", "weights")}

    def known(self) -> Known:
        """The images, all of which are there."""
        files: dict[str, str] = self._on_main(lambda: self._note()["files"])
        words = self._prior.words
        shown = json.dumps([words, [files[name] for name in self._names]])
        items = tuple(Item(name, place % max(1, len(words))) for place, name in enumerate(self._names))
        listing = Listing("folder", self._folder, tuple(words) or ("images",), items)
        if words:
            listing = numbered(listing, [self._task.number(word) for word in words], self._task)
        return Known(listing, hashlib.sha256(shown.encode()).hexdigest())

    def complete(self) -> bool:
        """Whether all images that are asked for are there as they were drawn; the same on every rank."""
        return bool(self._on_main(self._whole))

    def _whole(self) -> bool:
        note = self._note()
        files = note.pop("files", None)
        note.pop("weights", None)
        if note != json.loads(json.dumps(self._about)) or not isinstance(files, dict) or sorted(files) != self._names:
            return False
        lost = [name for name, digest in files.items() if _sha256(self._folder / name) != digest]
        if lost:
            log.warning("%s is not as it was drawn, and is drawn again", self._folder / lost[0])
        return not lost

    def _note(self) -> dict[str, Any]:
        try:
            found = json.loads((self._folder / _NOTE).read_text(encoding="utf-8"))
        except (OSError, ValueError):
            return {}
        return found if isinstance(found, dict) else {}

    def draw(self, make: Callable[[], Built], at: Callable[[str], None], stop: Callable[[], bool]) -> bool:
        """Draw what is missing with the network of `make`, as it came; false where a stop was wished before all were there.

        Raises UserError for weights that cannot draw what is asked for.
        """
        runtime = self._runtime
        built = make()
        _able(built, self._prior)
        weights = {"network": fingerprint(built.network), **self._beside}
        missing: set[int] = self._on_main(lambda: self._begin(weights))
        batches = share(list(range(self._prior.count)), self._batch, 0, 1)
        todo = [batch for batch in batches if not missing.isdisjoint(batch)]
        network = still(built.network, runtime.device)
        shown = WorkShown("images that the weights draw", self._prior.count, shows=runtime.main)
        shown.told(self._prior.count - sum(map(len, todo)))
        for first in range(0, len(todo), runtime.world):
            mine = todo[first : first + runtime.world]
            problem = ""
            if runtime.rank < len(mine):
                with runtime.autocast():
                    problem = self._make(network, mine[runtime.rank], missing, at)
            reached("prior-drawn", first // runtime.world + 1)
            said = runtime.everyone((problem, bool(stop())))
            failed = next((problem for problem, _ in said if problem), None)
            if failed is not None:
                shown.close(failed)
                raise GraftError(f"task.prior: {failed}")
            if any(wished for _, wished in said):
                shown.close("stopped; what is drawn stays")
                return False
            shown.told(self._prior.count - sum(map(len, todo[first + runtime.world :])))
        self._on_main(lambda: self._end(weights))
        shown.close(f"{self._prior.count:,} images that the weights drew are in {self._folder}")
        return True

    def _begin(self, weights: Mapping[str, str]) -> set[int]:
        """The images that are missing or damaged. What other weights drew, or was asked for otherwise, goes away, or aside."""
        note = self._note()
        files: dict[str, str] = note.pop("files", {}) or {}
        about = json.loads(json.dumps({**self._about, "weights": weights}))
        if note != about:
            files = {}
            if self._resumed and self._folder.exists():
                self._put_aside()
            shutil.rmtree(self._folder, ignore_errors=True)
            self._folder.mkdir(parents=True, exist_ok=True)
            write_atomically(self._folder / _NOTE, json.dumps(about, indent=1))
        return {
            number for number, name in enumerate(self._names)
            if not _readable(self._folder / name) or (name in files and _sha256(self._folder / name) != files[name])
        }  # fmt: skip

    def _put_aside(self) -> None:
        places = (self._folder.with_name(f"{self._folder.name}.{number}") for number in itertools.count(1))
        place = next(place for place in places if not place.exists())
        self._folder.rename(place)
        log.warning("other images of the prior are drawn than this run learnt of; those are in %s", place)

    def _end(self, weights: Mapping[str, str]) -> None:
        files = {name: _sha256(self._folder / name) for name in self._names}
        write_atomically(self._folder / _NOTE, json.dumps({**self._about, "weights": weights, "files": files}, indent=1))

    def _on_main(self, do: Callable[[], Any]) -> Any:
        """Have rank 0 do something with the files. Raises GraftError on every rank where it cannot."""
        made, problem = None, ""
        if self._runtime.main:
            try:
                made = do()
            except OSError as error:
                problem = f"{error.filename or self._folder}: {error.strerror or error}"
        problem, made = self._runtime.from_main((problem, made))
        if problem:
            raise GraftError(f"task.prior: {problem}")
        return made

    def _make(self, network: Any, numbers: Sequence[int], missing: Container[int], at: Callable[[str], None]) -> str:
        """Draw a batch and write what is missing of it; a problem is returned in words."""
        words = self._prior.words
        which = [self._task.number(words[number % len(words)]) if words else 0 for number in numbers]
        try:
            made = self._task.sample(network, [self._prior.seed + n for n in numbers], which, self._plan, lambda: at("data"))
        except Exception as error:
            if not short(error):
                raise
            return f"the memory is too little to draw its images ({told(error)}): {fewer_made(self._run)}"
        try:
            for number, image in zip(numbers, made, strict=True):
                if number in missing:
                    _write(self._folder / self._names[number], picture(image))
        except OSError as error:
            return f"{self._folder}: {error.strerror or error}"
        return ""


def _able(built: Built, prior: Prior) -> None:
    """Raises UserError where the weights do not know what they shall draw."""
    if not built.report.matched:
        raise UserError(
            "task.prior: its images are drawn by the weights that the run begins with, and model.weights is none; name weights, "
            "give the images as task.prior.data, or leave the prior out"
        )
    own = [name for name in built.fresh if "class_embed" not in name and "embedding_table" not in name]
    if own:
        raise UserError(
            f"task.prior: the weights that should draw its images have no values for '{own[0]}', which would be drawn by chance; "
            "give the images as task.prior.data, or leave the prior out"
        )
    for name in prior.classes:
        if name not in built.report.classes:
            known = ", ".join(built.report.classes[:5]) or "no class of this run"
            raise UserError(
                f"task.prior.classes: {built.report.source} has no row for '{name}', so it cannot draw it (it knows {known}); "
                "write what it calls it as model.adapt.rename, or give the images as task.prior.data"
            )


def _sha256(path: Path) -> str:
    try:
        return hashlib.sha256(path.read_bytes()).hexdigest()
    except OSError:
        return ""


def _readable(path: Path) -> bool:
    try:
        images.read(path, 3, 1 << 40)
    except BadImageError:
        return False
    return True


def _write(path: Path, image: Any) -> None:
    """Write an image as PNG, under its name once it is whole, and durably."""
    temporary = path.with_name(f".{path.name}.tmp")
    with temporary.open("wb") as file:
        image.save(file, "PNG")
        file.flush()
        os.fsync(file.fileno())
    temporary.replace(path)
    fsync_folder(path.parent)
