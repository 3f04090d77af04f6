"""`graft demo`: the whole way on real digits. Pretrain, graft, compare with training from scratch, report."""

from __future__ import annotations

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
_WORKS = ("pretrain", "head", "full", "scratch")
_LEARNS = {
    "head": "a new head, trunk pretrained",
    "full": "every layer, pretrained",
    "scratch": "every layer, from nothing",
}

_MEANING = """\
All three see the same images in the same steps, each at the learning rate that was best for it on the training digits left
over. The graft of every layer is ahead after these few steps. With four times as many, training from scratch comes close,
the digits being easy; a new head alone is limited by a trunk that has seen five digits only.
"""


@dataclass(frozen=True)
class Row:
    """One line of the comparison; `accuracy` is a share of the validation digits, none when the record has none."""

    name: str
    learns: str
    steps: int
    accuracy: float | None
    seconds: float


def run_demo(runs: Path, *, fresh: bool) -> int:
    """Train the four runs that are not done yet, compare them, write a report; returns the exit code."""
    if fresh:
        for work in _WORKS:
            _remove(RunDir((runs / f"demo-{work}").resolve()))
    files = write_files(runs)
    print("A small network learns the digits 0 to 4, then 5 to 9 from ten labelled images of each.\n", flush=True)
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
            rows.append(_row(work, prepared.rundir, prepared.plan.steps, time.monotonic() - began))
    _show(rows, prepared.plan.train_samples, prepared.plan.val_samples or 0)
    print("\n".join(commands(files, runs)), flush=True)
    folders = [RunDir((runs / f"demo-{work}").resolve()) for work in _WORKS[1:]]
    print("\nCurves, confusion matrices, right and wrong digits:", flush=True)
    _trainer("report", *(str(folder.path) for folder in folders))
    return EXIT_DONE


def commands(files: dict[str, Path], runs: Path) -> list[str]:
    """What the demo ran, as commands for the same by hand."""
    where = "" if runs == Path("runs") else f" --runs {shlex.quote(str(runs))}"
    train = {work: f"  graft train {shlex.quote(str(file))}{where}" for work, file in files.items()}
    names = " ".join(f"demo-{work}" for work in _WORKS[1:])
    return [
        "The same by hand:",
        train["pretrain"],
        f"  graft export demo-pretrain{where}",
        *(train[work] for work in _WORKS[1:]),
        f"  graft report {names}{where}",
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


def _row(work: str, rundir: RunDir, steps: int, seconds: float) -> Row:
    measured = [p["val/accuracy"] for p in read_points(rundir.metrics) if p.get("val/accuracy") is not None]
    trained = rundir.read_json(rundir.summary).get("wall_seconds")  # of the training itself, also when it was done before
    return Row(
        rundir.name, _LEARNS[work], steps, measured[-1] if measured else None,
        float(trained) if isinstance(trained, int | float) else seconds,
    )  # fmt: skip


def _show(rows: list[Row], images: int, tested: int) -> None:
    from rich import box
    from rich.console import Console
    from rich.table import Table

    table = Table(
        box=box.SIMPLE, pad_edge=False, title_justify="left",
        title=f"The digits 5 to 9 from {images} labelled images, tested on {tested} others",
    )  # fmt: skip
    for column in ("run", "what learns", "steps", "accuracy", "seconds"):
        table.add_column(column, justify="left" if column in ("run", "what learns") else "right")
    for row in rows:
        accuracy = "" if row.accuracy is None else f"{row.accuracy:.1%}"
        table.add_row(row.name, row.learns, str(row.steps), accuracy, f"{row.seconds:.1f}")
    print()
    Console().print(table)
    print(_MEANING)
