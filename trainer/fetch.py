"""`graft fetch`: what a run needs is brought into the local caches, or checked to be there."""

from __future__ import annotations

import http.client
import sys
import time
from collections.abc import Callable
from pathlib import Path

from trainer import judges
from trainer.config import EXIT_DONE, Run, UserError
from trainer.config.model import Model
from trainer.config.sources import open_source, open_splits
from trainer.config.targets import LooksAt
from trainer.data.download import bring
from trainer.models import denoisers, needs
from trainer.models.autoencoder import Codec
from trainer.models.base import Need
from trainer.models.download import alone, download, whole
from trainer.models.gan import pair_needs
from trainer.models.generator import generator_needs
from trainer.models.reconstructor import reconstructor_needs
from trainer.rundir import fetched
from trainer.track.console import byte_size

_INTERRUPTED = 130


def fetch(run: Run) -> int:
    """Bring or check weights and data, and say what there is. Raises UserError for what cannot be had or read."""
    try:
        for key, model in run.models.items():
            wanted = _needs(run, key, model) + (judges.all_needs(run.task) if key == "model" else [])
            files = [file for need in wanted for file in _weights(need)]
            if not wanted:
                print(f"{model.source}: no weights to fetch")
            try:
                fetched.note(model.source, model.weights, files)
            except OSError as error:
                print(f"graft: `graft submit` will not know of this: {error}", file=sys.stderr)
        _data(run)
    except KeyboardInterrupt:
        print("graft: broken off; the same command goes on with it", file=sys.stderr)
        return _INTERRUPTED
    return EXIT_DONE


def _needs(run: Run, key: str, model: Model) -> list[Need]:
    """What a network is read from."""
    if key == "task.vae":
        return Codec.of(model.source, None).needs()
    if key == "model" and run.task.reconstructs:
        return reconstructor_needs(model)
    if key == "model" and run.task.duels:
        return pair_needs(model)
    scheme, _, rest = model.source.partition(":")
    if key in ("model", "task.back") and run.task.translates and scheme == "diffusers":
        return denoisers.needs(rest, model)
    if key == "model" and run.task.generates:
        return generator_needs(model, getattr(run.task, "vae", None))
    return needs(model)


def _weights(need: Need) -> list[Path]:
    """Bring or check one need; the files that it is read from."""
    if need.bring is not None:
        files = need.bring()
        size = sum(file.stat().st_size for file in files)
        print(f"{need.what}: here, {len(files)} files, {byte_size(size)}, {need.file}")
        return files
    if need.url is None:
        _local(need)
        return [need.file]
    advice = f"put {need.file.name} from {need.url} into {need.file.parent}"
    try:
        need.file.parent.mkdir(parents=True, exist_ok=True)
        with alone(need.file):
            if whole(need.file, need.sha256):
                print(f"{need.what}: here and whole, {byte_size(need.file.stat().st_size)}, {need.file}")
                return [need.file]
            if need.file.exists():
                print(f"{need.what}: {need.file} is damaged (its sha256 is another), brought anew", flush=True)
            begun = time.monotonic()
            with _Bar(need.what) as bar:
                download(need.url, need.file, need.sha256, bar.update)
            seconds = max(time.monotonic() - begun, 1e-3)
    except UserError as error:
        raise UserError(f"{need.what}: {error}; {advice}") from error
    except (OSError, http.client.HTTPException) as error:
        raise UserError(
            f"{need.what} could not be fetched ({error}); run it where there is a network, the same command goes on; or {advice}"
        ) from error
    brought = f"{byte_size(bar.came)} in {seconds:.1f} s, {byte_size(bar.came / seconds)}/s"
    print(f"{need.what}: fetched, {brought}, {need.file}")
    return [need.file]


def _local(need: Need) -> None:
    try:
        if not whole(need.file, need.sha256):
            wrong = "is damaged: its sha256 is not the one in its name" if need.file.exists() else "no such file"
            wrong = "is empty" if need.file.exists() and not need.file.stat().st_size else wrong
            raise UserError(f"{need.what}: {need.file}: {wrong}")
    except OSError as error:
        raise UserError(f"{need.what}: {need.file} cannot be read: {error.strerror}") from error
    print(f"{need.what}: here, {byte_size(need.file.stat().st_size)}, {need.file}")


def _data(run: Run) -> None:
    """Every file is opened: a permission, or a share that is not mounted, is found here and not on a node."""
    for source in run.sources.values():
        bring(source)
    splits = open_splits(run.data, run.train.seed, looks_at=run.task.looks_at)
    listings = {"data.train": splits.train, "data.val": splits.val}
    for key in ("task.prior.data", "evaluate.source"):
        if key in run.sources:
            looks: LooksAt = run.task.looks_at if key == "task.prior.data" else "targets"
            listings[key] = open_source(run.sources[key], looks_at=looks)
    for name, listing in listings.items():
        if listing is None:
            continue
        files = listing.files()
        size = 0
        for file in files:
            try:
                with file.open("rb") as stream:
                    size += stream.seek(0, 2)
            except OSError as error:
                raise UserError(f"{name}: {file} cannot be read: {error.strerror}") from error
        print(f"{name}: {len(listing.items):,} samples, {byte_size(size)}, {listing.root}")


class _Bar:
    """Progress with rate and end for a person at a terminal; silent elsewhere."""

    def __init__(self, what: str) -> None:
        from rich.console import Console
        from rich.progress import BarColumn, DownloadColumn, Progress, TextColumn, TimeRemainingColumn, TransferSpeedColumn

        columns = (TextColumn("{task.description}", markup=False), BarColumn(), DownloadColumn())
        self._shown = Progress(
            *columns, TransferSpeedColumn(), TimeRemainingColumn(), console=Console(stderr=True), transient=True,
            disable=not sys.stderr.isatty(),
        )  # fmt: skip
        self._task = self._shown.add_task(what, total=None)
        self._first: int | None = None
        self.came = 0
        self.update: Callable[[int, int | None], None] = self._update

    def __enter__(self) -> _Bar:
        self._shown.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._shown.stop()

    def _update(self, done: int, total: int | None) -> None:
        if self._first is None or done < self._first:
            self._first = done  # what an earlier call had brought does not count for the rate
        self.came = done - self._first
        self._shown.update(self._task, completed=done, total=total)
