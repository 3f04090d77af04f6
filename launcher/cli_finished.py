"""The commands of `graft` that use what a run has learnt; each becomes one of the trainer."""

from __future__ import annotations

import os
from pathlib import Path

import typer

from launcher.cli import RUNS, RunName, Runs, app

PASS_ON = {"allow_extra_args": True, "ignore_unknown_options": True, "help_option_names": []}


_COMMANDS = {
    "evaluate": "Measure a run's best weights.\n\nOn its own validation data, or on other: graft evaluate RUN [DATA].",
    "forgetting": (
        "Measure what a run forgot of the task that its weights came from.\n\nBefore and after it was trained: graft forgetting "
        "RUN [DATA]."
    ),
    "predict": "Classify images: graft predict RUN FILES…",
    "sample": "Make images: graft sample RUN --classes … --seeds 0-15",
    "translate": "Make pictures of pictures: graft translate RUN FOLDER --out DIR",
    "export": "Write a run's best weights for use without graft.",
    "report": (
        "Write a page of curves and examples.\n\nOf one run, or of several compared: graft report RUN…; or of a sweep, by its "
        "name."
    ),
}


def _register(name: str, about: str) -> None:
    """A command that hands its arguments to the trainer's of the same name."""

    @app.command(name=name, help=about, context_settings=PASS_ON)
    def command(context: typer.Context, run: RunName, runs: Runs = RUNS) -> None:
        arguments = [_named(argument, runs) for argument in context.args] if name == "report" else context.args
        trainer(name, run, runs, arguments)


for _name, _about in _COMMANDS.items():
    _register(_name, _about)


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
