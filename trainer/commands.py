"""`python -m trainer COMMAND`: what is done with a run before or after it is trained."""

from __future__ import annotations

import argparse
import json
import logging
import sys
from pathlib import Path
from typing import TYPE_CHECKING

from trainer import commands_of_time
from trainer.config import EXIT_DONE, GraftError, UserError
from trainer.rundir import RunDir

if TYPE_CHECKING:
    from trainer.tasks.base import Evaluation


def main(argv: list[str]) -> int:
    """Run one of the commands; explained failures become a message and an exit code."""
    logging.basicConfig(level=logging.WARNING, format="graft: %(message)s")
    logging.captureWarnings(True)
    commands = {
        "evaluate": evaluate, "forgetting": forgetting, "predict": predict, "sample": sample, "translate": translate,
        "export": export, "report": report, "fetch": fetch, "models": models, "sync": sync, "describe": describe,
        "find-lr": find_lr,
    }  # fmt: skip
    try:
        if argv[0] in commands_of_time.COMMANDS:
            return commands_of_time.COMMANDS[argv[0]](argv[1:])
        return commands[argv[0]](argv[1:])
    except GraftError as error:
        print(f"graft: {error}", file=sys.stderr)
        return error.code


def _parser(command: str, about: str) -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog=f"graft {command}", description=about)
    parser.add_argument("run", type=Path, help="a run's folder, or its name below --runs (default: runs)")
    return parser


def _checkpoint(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--checkpoint", default="best", help="best, last or a step (default: best)")
    parser.add_argument("--device", default="auto", help="auto, cpu or cuda")


def describe(argv: list[str]) -> int:
    """Print what of a network learns, as JSON."""
    parser = argparse.ArgumentParser(prog="graft plan", description="Say what of a network learns.")
    parser.add_argument("run", type=Path, help="a run file")
    parser.add_argument("overrides", nargs="*", metavar="key=value")
    parser.add_argument("--world", type=int, default=1, help="ranks over all nodes")
    parser.add_argument("--card", action="append", default=[], help="fit the run to this card: a name, or its GiB (24GiB)")
    arguments = parser.parse_intermixed_args(argv)

    from trainer.config import load
    from trainer.config.footprint import card
    from trainer.describe import describe as described

    cards = [card(name) for name in arguments.card]
    print(json.dumps(described(load(arguments.run, arguments.overrides), world=arguments.world, cards=cards)))
    return EXIT_DONE


def find_lr(argv: list[str]) -> int:
    """Train some steps at a rising learning rate, draw the losses and suggest a rate."""
    parser = argparse.ArgumentParser(prog="graft find-lr", description="Find a learning rate; nothing of the run is trained.")
    parser.add_argument("run", type=Path, help="a run file, or the folder of a run")
    parser.add_argument("overrides", nargs="*", metavar="key=value")
    parser.add_argument("--runs", type=Path, default=Path("runs"), help="where the run folders are (default: runs)")
    parser.add_argument("--low", type=float, default=1e-6, help="the first rate (default: 1e-6)")
    parser.add_argument("--high", type=float, default=10.0, help="the last rate (default: 10)")
    parser.add_argument("--steps", type=int, default=100, help="steps from the one to the other (default: 100)")
    parser.add_argument("--json", action="store_true", help="one JSON object")
    arguments = parser.parse_intermixed_args(argv)

    from contextlib import redirect_stdout

    from trainer.attempt import named
    from trainer.finder import find, write

    folder, run = named(arguments)
    with redirect_stdout(sys.stderr):
        found = find(run, low=arguments.low, high=arguments.high, steps=arguments.steps)
    write(folder, found)
    if arguments.json:
        print(json.dumps(found.as_json()))
        return EXIT_DONE
    last = found.rates[-1] if found.rates else arguments.low
    how = ", where the loss diverged" if found.diverged else ""
    print(f"{run.name}: {len(found.rates)} steps from {arguments.low:.1e} to {last:.1e}{how}")
    for name, rate in found.suggestions.items():
        print(f"  {name:<9} {rate:.2e}")
    if not found.suggestions:
        print("  the loss never fell: try a lower --low, more --steps, or look at the data")
    print(folder.path / "lr-finder.svg")
    return EXIT_DONE


def evaluate(argv: list[str]) -> int:
    """Measure the weights of a run over its validation samples, or over another source."""
    parser = _parser("evaluate", "Measure a run's weights on its validation data or on other data.")
    parser.add_argument("data", nargs="?", help="a source such as folder:PATH; left out: the validation data of the run")
    _checkpoint(parser)
    parser.add_argument("--json", action="store_true", help="one JSON object with the details: confusion matrix, tables")
    arguments = parser.parse_intermixed_args(argv)

    from trainer.measuring import measure
    from trainer.restored import device_of, restore

    restored = restore(RunDir(arguments.run.resolve()), arguments.checkpoint)
    result, bad = measure(restored, arguments.data, device_of(arguments.device))
    if arguments.json:
        details = {key: value for key, value in result.details.items() if key != "answers"}
        print(json.dumps({"step": restored.step, "metrics": result.metrics, "unreadable": bad, **details}, indent=1))
    else:
        _show(result, f"{restored.run.name}, step {restored.step:,}, {arguments.data or 'validation data'}", bad)
    return EXIT_DONE


def forgetting(argv: list[str]) -> int:
    """Measure what a run forgot of the task that its weights came from."""
    parser = _parser("forgetting", "Measure a run on the task that its weights came from, before and after it was trained.")
    parser.add_argument("data", nargs="?", help="samples of that task, such as folder:PATH (default: the run's evaluate.source)")
    _checkpoint(parser)
    parser.add_argument("--json", action="store_true", help="one JSON object")
    arguments = parser.parse_intermixed_args(argv)

    from trainer.forgetting import forgetting, note
    from trainer.restored import device_of, restore

    folder = RunDir(arguments.run.resolve())
    restored = restore(folder, arguments.checkpoint)
    source = arguments.data or restored.run.evaluate.source
    if source is None:
        raise UserError(f"{restored.run.name} has no evaluate.source; name samples of the source task, such as folder:PATH")
    found = forgetting(restored, source, device_of(arguments.device))
    if arguments.checkpoint == "best" and arguments.data is None:
        note(folder, found)
    print(json.dumps(found.as_json(), indent=1) if arguments.json else found.text())
    return EXIT_DONE


def _show(result: Evaluation, title: str, bad: int) -> None:
    from rich.console import Console
    from rich.table import Table

    from trainer.answers.figures import figures_of

    out = Console(highlight=False)
    told = ", ".join(f"{name} {value:.4f}" for name, value in result.metrics.items())
    skipped = f", {bad} unreadable left out" if bad else ""
    out.print(f"{title}: {result.details['samples']:,} samples{skipped}\n{told}", markup=False)
    for name, (figures, rows) in figures_of(result.details).items():
        table = Table(figures.of, *figures.columns.values(), "samples", title=name or None)
        for row in rows:
            numbers = ("–" if row[column] is None else f"{row[column]:.4f}" for column in figures.columns)
            table.add_row(row["name"], *numbers, f"{row['support']:,}")
        out.print(table)


def predict(argv: list[str]) -> int:
    """Say of files and folders of images what the network learnt to say."""
    parser = _parser("predict", "Say what a run's weights make of images: classes, labels or numbers.")
    parser.add_argument("files", nargs="+", type=Path, help="images, or folders of images")
    _checkpoint(parser)
    parser.add_argument("--top", type=int, default=3, help="classes shown for an image (default: 3)")
    parser.add_argument("--batch", type=int, default=32, help="images in one forward pass")
    parser.add_argument("--json", action="store_true", help="one JSON object a line")
    arguments = parser.parse_intermixed_args(argv)

    import torch

    from trainer.data import Batch
    from trainer.data.images import read
    from trainer.data.transforms import evaluation
    from trainer.predict import predict_files, show
    from trainer.restored import device_of, restore

    if arguments.top < 1:
        raise UserError("--top must be at least 1")
    restored = restore(RunDir(arguments.run.resolve()), arguments.checkpoint)
    if restored.run.task.generates:
        command = "sample" if getattr(restored.run.task, "pairs", None) is None else "translate"
        raise UserError(f"{restored.run.name} makes images and says nothing of any; write `graft {command} {arguments.run.name}`")
    if restored.run.task.translates or restored.run.task.reconstructs:
        command = "translate" if restored.run.task.translates else "export"
        raise UserError(f"{restored.run.name} makes pictures and says nothing; write `graft {command} {arguments.run.name}`")
    spec, device = restored.spec, device_of(arguments.device)
    transform = evaluation(restored.run.data, spec)

    def normalise(images: torch.Tensor) -> torch.Tensor:
        nothing = torch.zeros(len(images), dtype=torch.int64)
        return Batch(images, nothing, nothing).to(device, spec).images

    rows = predict_files(
        restored.network.to(device), lambda logits: restored.task.predictions(logits, arguments.top), arguments.files,
        lambda path: transform(read(path, spec.in_channels, restored.run.data.max_pixels)), normalise, batch=arguments.batch,
    )  # fmt: skip
    return show(rows, arguments.json)


def sample(argv: list[str]) -> int:
    """Make images with the weights of a run that generates."""
    from trainer.generate.command import sample as made

    parser = _parser("sample", "Make images with a run's weights: every seed of every class, a file each.")
    _checkpoint(parser)
    return made(parser, argv)


def translate(argv: list[str]) -> int:
    """Make pictures of pictures with the weights of a run that translates."""
    from trainer.generate.translate import translate as made

    parser = _parser("translate", "Make pictures of pictures with a run's weights, a file each.")
    _checkpoint(parser)
    return made(parser, argv)


def export(argv: list[str]) -> int:
    """Write weights, settings, a model card and a program that need no graft."""
    from trainer.export.command import write

    parser = _parser("export", "Write a run's weights with a model card, for use without graft.")
    _checkpoint(parser)
    return write(parser, argv)


def report(argv: list[str]) -> int:
    """Write one page about one run or several."""
    parser = argparse.ArgumentParser(prog="graft report", description="Write a page with curves and examples of runs.")
    parser.add_argument("runs", nargs="+", type=Path, help="folders of runs, or the folder of a sweep")
    parser.add_argument(
        "--out", type=Path, help="the file to write (default: report.html in the run's folder, or beside those of several)"
    )
    arguments = parser.parse_intermixed_args(argv)

    from trainer.report import default_output, write_report, write_sweep_report
    from trainer.rundir.sweep import SweepDir

    folders = [RunDir(path.resolve()) for path in arguments.runs]
    sweep = SweepDir(folders[0].path)
    if len(folders) == 1 and sweep.exists():
        print(write_sweep_report(sweep, arguments.out or sweep.report))
        return EXIT_DONE
    for folder in folders:
        folder.load()
    print(write_report(folders, arguments.out or default_output(folders)))
    return EXIT_DONE


def sync(argv: list[str]) -> int:
    """Send what the W&B server lacks of runs."""
    parser = argparse.ArgumentParser(prog="graft sync", description="Send runs to the W&B server.")
    parser.add_argument("runs", nargs="+", type=Path, help="folders of runs")
    parser.add_argument("--follow", action="store_true", help="go on while the runs go on")
    parser.add_argument("--every", type=float, default=30.0, help="seconds between two looks at a run that goes on (default: 30)")
    parser.add_argument("--json", action="store_true", help="one JSON object")
    arguments = parser.parse_args(argv)

    from trainer.track.sync import sync

    folders = [RunDir(path.resolve()) for path in arguments.runs]
    return sync(folders, follow=arguments.follow, every=arguments.every, as_json=arguments.json)


def models(argv: list[str]) -> int:
    """List what can be grafted onto, or describe one source."""
    parser = argparse.ArgumentParser(
        prog="graft models",
        description="List the sources of networks, or describe the one that PATTERN means.",
        epilog="graft models 'timm:vit_*'; graft models timm:resnet18; graft models transformers:FOLDER; graft models run:NAME",
    )
    parser.add_argument("pattern", nargs="?", help="a name, a part of it, or a pattern with * and ?")
    parser.add_argument("--source", choices=["torchvision", "timm", "run"], help="only these")
    parser.add_argument("--runs", type=Path, default=Path("runs"), help="where the run folders are")
    parser.add_argument("--json", action="store_true", help="JSON: a list, or one object for one source")
    arguments = parser.parse_intermixed_args(argv)

    from trainer.catalog import show

    return show(arguments.pattern, arguments.source, arguments.runs, as_json=arguments.json)


def fetch(argv: list[str]) -> int:
    """Bring what a run needs into the local caches."""
    parser = argparse.ArgumentParser(prog="graft fetch", description="Bring what a run needs into the local caches.")
    parser.add_argument("run", type=Path, help="a run file, or the folder of a run")
    parser.add_argument("overrides", nargs="*", metavar="key=value")
    arguments = parser.parse_intermixed_args(argv)

    from trainer.config import load
    from trainer.fetch import fetch

    target = arguments.run / "run.yaml" if arguments.run.is_dir() else arguments.run
    return fetch(load(target, arguments.overrides))
