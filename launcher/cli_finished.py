"""The commands of `graft` that use what a run has learnt; each becomes one of the trainer."""

from __future__ import annotations

import os
from pathlib import Path

import typer

from launcher.cli import RUNS, RunName, Runs, app

PASS_ON = {"allow_extra_args": True, "ignore_unknown_options": True, "help_option_names": []}


@app.command(context_settings=PASS_ON)
def evaluate(context: typer.Context, run: RunName, runs: Runs = RUNS) -> None:
    """Measure a run's best weights.

    On its own validation data, or on other: graft evaluate RUN [DATA].
    """
    trainer("evaluate", run, runs, context.args)


@app.command(context_settings=PASS_ON)
def forgetting(context: typer.Context, run: RunName, runs: Runs = RUNS) -> None:
    """Measure what a run forgot of the task that its weights came from.

    Before and after it was trained: graft forgetting RUN [DATA].
    """
    trainer("forgetting", run, runs, context.args)


@app.command(context_settings=PASS_ON)
def predict(context: typer.Context, run: RunName, runs: Runs = RUNS) -> None:
    """Classify images: graft predict RUN FILES…"""
    trainer("predict", run, runs, context.args)


@app.command(context_settings=PASS_ON)
def sample(context: typer.Context, run: RunName, runs: Runs = RUNS) -> None:
    """Make images: graft sample RUN --classes … --seeds 0-15"""
    trainer("sample", run, runs, context.args)


@app.command(context_settings=PASS_ON)
def translate(context: typer.Context, run: RunName, runs: Runs = RUNS) -> None:
    """Make pictures of pictures: graft translate RUN FOLDER --out DIR"""
    trainer("translate", run, runs, context.args)


@app.command(context_settings=PASS_ON)
def export(context: typer.Context, run: RunName, runs: Runs = RUNS) -> None:
    """Write a run's best weights for use without graft."""
    trainer("export", run, runs, context.args)


@app.command(context_settings=PASS_ON)
def report(context: typer.Context, run: RunName, runs: Runs = RUNS) -> None:
    """Write a page of curves and examples.

    Of one run, or of several compared: graft report RUN…; or of a sweep, by its name.
    """
    trainer("report", run, runs, [_named(argument, runs) for argument in context.args])


def _named(argument: str, runs: Path) -> str:
    """A run's name becomes its folder; anything else stays."""
    folder = runs / argument
    return str(folder) if (folder / "run.yaml").is_file() else argument


def trainer(command: str, run: str, runs: Path, arguments: list[str]) -> None:
    """Become `python -m trainer COMMAND`: its arguments, its output and its exit code."""
    if run in ("--help", "-h"):
        folders, rest = [], ["--help"]
    else:
        from launcher.runs import find

        sweep = next((f for f in (Path(run), runs / run) if (f / "sweep.yaml").is_file()), None) if command == "report" else None
        folders, rest = [str(sweep or find(run, runs).path)], arguments
    from launcher.python import environment, trainer_command

    words = trainer_command(command, *folders, *rest)
    os.execve(words[0], words, environment())
