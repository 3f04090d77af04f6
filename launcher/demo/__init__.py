"""`graft demo`: the whole way on real digits. Pretrain, graft, compare with training from scratch, report."""

from __future__ import annotations

import shutil
import subprocess
import sys
import time
from dataclasses import dataclass
from pathlib import Path

from launcher import start
from launcher.python import environment, trainer_command
from trainer.config import EXIT_DONE, GraftError, RefusedError
from trainer.rundir import RunDir, read_points
from trainer.rundir.lease import held_by

_HERE = Path(__file__).parent
_WORKS = ("pretrain", "head", "full", "scratch")
_LEARNS = {
    "head": "a new head on the pretrained trunk",
    "full": "every layer, from the pretrained ones",
    "scratch": "every layer, from random ones",
}


@dataclass(frozen=True)
class Row:
    """One line of the comparison; `accuracy` is a share of the validation digits, none when the record has none."""

    name: str
    learns: str
    accuracy: float | None
    seconds: float
    command: str


def run_demo(runs: Path, *, fresh: bool) -> int:
    """Train the four runs that are not done yet, compare them, write a report; returns the exit code."""
    if fresh:
        for work in _WORKS:
            _remove(RunDir((runs / f"demo-{work}").resolve()))
    files = write_files(runs)
    print(
        "Pretraining a small network on the digits 0 to 4, then teaching it 5 to 9 with ten labelled images of each.\n",
        flush=True,
    )
    rows = []
    for work in _WORKS:
        prepared = start.prepare(str(files[work]), [], runs, None)
        began = time.monotonic()
        code = start.train(prepared)
        if code != EXIT_DONE:
            print("graft: the demo is not complete; `graft demo` again goes on where it stopped", file=sys.stderr)
            return code
        if work == "pretrain":
            _export(prepared.rundir)
        else:
            rows.append(_row(work, prepared.rundir, time.monotonic() - began, f"graft train {files[work]}"))
    _show(rows, prepared.plan.train_samples, prepared.plan.val_samples or 0)
    folders = [RunDir((runs / f"demo-{work}").resolve()) for work in _WORKS[1:]]
    print("Curves, confusion matrices, right and wrong digits:", flush=True)
    _trainer("report", *(str(folder.path) for folder in folders))
    return EXIT_DONE


def write_files(runs: Path) -> dict[str, Path]:
    """Put the run files and the network below `runs`, with their paths in them, so that each can be run and changed alone."""
    folder = runs / "demo"
    try:
        folder.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(_HERE / "network.py", folder / "network.py")
        files = {work: folder / f"{work}.yaml" for work in _WORKS}
        pretrained = RunDir((runs / "demo-pretrain").resolve()).export / "model.safetensors"
        for work, file in files.items():
            text = (_HERE / f"{work}.yaml").read_text(encoding="utf-8")
            text = text.replace("python:network.py:", f"python:{(folder / 'network.py').resolve()}:")
            file.write_text(text.replace("pretrained.safetensors", str(pretrained)), encoding="utf-8")
    except OSError as error:
        raise RefusedError(f"{folder} cannot be written: {error.strerror}; choose another place with --runs FOLDER") from None
    return files


def _remove(rundir: RunDir) -> None:
    holder = held_by(rundir.lease)
    if holder is not None:
        raise RefusedError(f"the run folder {rundir.path} is in use by {holder}; stop it first")
    if rundir.exists():
        shutil.rmtree(rundir.path)


def _export(rundir: RunDir) -> None:
    if not (rundir.export / "model.safetensors").is_file():
        _trainer("export", str(rundir.path))


def _trainer(command: str, *arguments: str) -> None:
    code = subprocess.run(trainer_command(command, *arguments), env=environment(), check=False).returncode
    if code:
        raise GraftError(f"the demo's `graft {command}` ended with exit code {code}")


def _row(work: str, rundir: RunDir, seconds: float, command: str) -> Row:
    measured = [p["val/accuracy"] for p in read_points(rundir.metrics) if p.get("val/accuracy") is not None]
    trained = rundir.read_json(rundir.summary).get("wall_seconds")  # of the training itself, also when it was done before
    return Row(
        rundir.name, _LEARNS[work], measured[-1] if measured else None,
        float(trained) if isinstance(trained, int | float) else seconds, command,
    )  # fmt: skip


def _show(rows: list[Row], images: int, tested: int) -> None:
    from rich import box
    from rich.console import Console
    from rich.table import Table

    table = Table(box=box.SIMPLE, pad_edge=False, title=f"Digits 5 to 9 from {images} labelled images, tested on {tested} others")
    for column in ("run", "what learns", "accuracy", "seconds", "again with"):
        table.add_column(column, justify="right" if column in ("accuracy", "seconds") else "left")
    for row in rows:
        accuracy = "" if row.accuracy is None else f"{row.accuracy:.1%}"
        table.add_row(row.name, row.learns, accuracy, f"{row.seconds:.1f}", row.command)
    print()
    Console().print(table)
