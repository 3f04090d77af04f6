"""`graft demo`: the whole way on real digits, with a classifier and with a generator. Pretrain, graft, compare with training
from scratch, report."""

from __future__ import annotations

import json
import shlex
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
# what is pretrained, then what is compared
_CLASSIFIER = ("pretrain", "head", "full", "scratch")
_GENERATOR = ("draw-pretrain", "draw", "draw-scratch")
_WORKS = (*_CLASSIFIER, *_GENERATOR)
_LEARNS = {
    "head": "a new head, trunk pretrained",
    "full": "every layer, pretrained",
    "scratch": "every layer, from nothing",
    "draw": "every layer, pretrained",
    "draw-scratch": "every layer, from nothing",
}
_DRAWINGS = "drawings.html"
# metrics of the comparisons, with what they are called there and how they are written
_JUDGED = {"val/accuracy": ("accuracy", ".1%")}
_DRAWN = {"val/fd_demofull": ("distance", ".1f"), "val/loss": ("loss", ".3f")}

_MEANING = """\
All three see the same images in the same steps, each at the learning rate that was best for it on the training digits left
over. The graft of every layer is ahead after these few steps. With four times as many, training from scratch comes close,
the digits being easy; a new head alone is limited by a trunk that has seen five digits only.
"""
_MEANING_DRAWN = """\
Both generators see the same fifty images with the same noise in the same steps. The distance is that between features of 200
generated digits and of the validation digits, to the eyes of demo-full (Fréchet's; it compares with no published FID). The
graft draws strokes as it did before and has learnt five new figures for them.
"""


@dataclass(frozen=True)
class Row:
    """One line of a comparison: `figures` are its last metrics, as they are written; empty where the record has none."""

    name: str
    learns: str
    steps: int
    figures: tuple[str, ...]
    seconds: float


def run_demo(runs: Path, *, fresh: bool) -> int:
    """Train the runs that are not done yet, compare them, write two reports; returns the exit code."""
    if fresh:
        for work in _WORKS:
            _remove(_run(runs, work))
    files = write_files(runs)
    print("A small network learns the digits 0 to 4, then 5 to 9 from ten labelled images of each.\n", flush=True)
    code = _train(_CLASSIFIER, files, runs, _JUDGED, "The digits 5 to 9 told apart", _MEANING)
    if code != EXIT_DONE:
        return code
    print("A small generator learns to draw the digits 0 to 4, then 5 to 9 from the same ten images of each.\n", flush=True)
    code = _train(_GENERATOR, files, runs, _DRAWN, "The digits 5 to 9 drawn", _MEANING_DRAWN)
    if code != EXIT_DONE:
        return code
    print("\n".join(commands(files, runs)), flush=True)
    print("\nCurves, confusion matrices, right and wrong digits; the drawings from evaluation to evaluation:", flush=True)
    _trainer("report", *(str(_run(runs, work).path) for work in _CLASSIFIER[1:]))
    _trainer("report", *(str(_run(runs, work).path) for work in _GENERATOR[1:]), "--out", str((runs / _DRAWINGS).resolve()))
    return EXIT_DONE


def _train(
    works: tuple[str, ...], files: dict[str, Path], runs: Path, judged: dict[str, tuple[str, str]], title: str, meaning: str
) -> int:  # fmt: skip
    """Train what is pretrained and what is compared with it, and show the comparison; the exit code."""
    rows = []
    for work in works:
        prepared = start.prepare(str(files[work]), [], runs, None)
        began = time.monotonic()
        code = start.train(prepared)
        if code != EXIT_DONE:
            print("graft: the demo is not complete; `graft demo` again goes on where it stopped", file=sys.stderr)
            return code
        if work == "pretrain":
            _export(prepared.rundir)
        elif work != works[0]:
            rows.append(_row(work, prepared.rundir, prepared.plan.steps, time.monotonic() - began, judged))
    counted = f"{prepared.plan.train_samples} labelled images, {prepared.plan.val_samples or 0} to judge"
    _show(rows, f"{title}: {counted}", [name for name, _ in judged.values()], meaning)
    return EXIT_DONE


def _run(runs: Path, work: str) -> RunDir:
    return RunDir((runs / f"demo-{work}").resolve())


def commands(files: dict[str, Path], runs: Path) -> list[str]:
    """What the demo ran, as commands for the same by hand."""
    where = "" if runs == Path("runs") else f" --runs {shlex.quote(str(runs))}"
    train = {work: f"  graft train {shlex.quote(str(file))}{where}" for work, file in files.items()}
    named = {works: " ".join(f"demo-{work}" for work in works[1:]) for works in (_CLASSIFIER, _GENERATOR)}
    return [
        "The same by hand:",
        train["pretrain"],
        f"  graft export demo-pretrain{where}",
        *(train[work] for work in _WORKS[1:]),
        f"  graft report {named[_CLASSIFIER]}{where}",
        f"  graft report {named[_GENERATOR]} --out {_DRAWINGS}{where}",
        "More drawings, an image a file:",
        f"  graft sample demo-draw --classes 7,8 --seeds 0-9{where}",
        "With a change, as another run:",
        f"{train['full']} name=mine optimizer.lr=1e-3",
    ]


def write_files(runs: Path) -> dict[str, Path]:
    """Put the run files and the network below `runs`, with their paths in them, so that each can be run and changed alone."""
    folder = runs / "demo"
    try:
        folder.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(_HERE / "network.py", folder / "network.py")
        files = {work: folder / f"{work}.yaml" for work in _WORKS}
        pretrained = _run(runs, "pretrain").export / "model.safetensors"
        for work, file in files.items():
            text = (_HERE / f"{work}.yaml").read_text(encoding="utf-8")
            text = text.replace("python:network.py:", f"python:{(folder / 'network.py').resolve()}:")
            text = text.replace("pretrained.safetensors", str(pretrained))
            for other in ("full", "draw-pretrain"):
                text = text.replace(f'"run:demo-{other}"', json.dumps(f"run:{_run(runs, other).path}"))
            file.write_text(text, encoding="utf-8")
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


def _row(work: str, rundir: RunDir, steps: int, seconds: float, judged: dict[str, tuple[str, str]]) -> Row:
    points = read_points(rundir.metrics)
    figures = []
    for metric, (_, form) in judged.items():
        measured = [point[metric] for point in points if point.get(metric) is not None]
        figures.append(format(measured[-1], form) if measured else "")
    trained = rundir.read_json(rundir.summary).get("wall_seconds")  # of the training itself, also when it was done before
    wall = float(trained) if isinstance(trained, int | float) else seconds
    return Row(rundir.name, _LEARNS[work], steps, tuple(figures), wall)


def _show(rows: list[Row], title: str, figures: list[str], meaning: str) -> None:
    from rich import box
    from rich.console import Console
    from rich.table import Table

    table = Table(box=box.SIMPLE, pad_edge=False, title_justify="left", title=title)
    for column in ("run", "what learns", "steps", *figures, "seconds"):
        table.add_column(column, justify="left" if column in ("run", "what learns") else "right")
    for row in rows:
        table.add_row(row.name, row.learns, str(row.steps), *row.figures, f"{row.seconds:.1f}")
    print()
    Console().print(table)
    print(meaning)
