"""The commands that need a cluster or look at many runs; thin, like those of `launcher.cli`."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Annotated

import typer

from launcher.cli import RUNS, Accept, Json, Overrides, RunFile, Runs, app, print_json
from launcher.cli_finished import PASS_ON

Names = Annotated[list[str], typer.Argument(metavar="RUN…", help="run folders, or their names below --runs")]


@app.command()
def submit(
    run: RunFile, overrides: Overrides = None, runs: Runs = RUNS, json: Json = False, accept_changes: Accept = False,
) -> None:  # fmt: skip
    """Give a run to Slurm.

    The code is copied beside it; a job that is preempted or runs out of time goes on by itself.
    """
    from launcher.submit import prepare, submit

    submitted = submit(prepare(run, overrides or [], runs), accept_changes=accept_changes)
    if json:
        print_json(submitted.as_json())
    else:
        print(submitted.text())


_SWEEP = """\b
A sweep file:
  name: lr-search
  run: pets.yaml                        beside this file
  search: {kind: random, count: 20}     or {kind: grid}; or {kind: list} with members: [{…}, …]
  over:
    optimizer.lr: {low: 1e-5, high: 1e-2, scale: log}
    strategy.kind: [head, full]
  parallel: 4                           at most so many at once
  best: val/accuracy
\b
Examples:
  graft sweep lr.yaml --dry-run
  graft sweep lr.yaml train.epochs=2 sweep.parallel=8
  graft runs --sweep lr-search
"""


@app.command(epilog=_SWEEP)
def sweep(
    file: Annotated[Path, typer.Argument(metavar="FILE", help="a sweep file (.yaml)")],
    overrides: Overrides = None,
    runs: Runs = RUNS,
    local: Annotated[bool, typer.Option("--local", help="train the members here, one after the other, without Slurm")] = False,
    dry: Annotated[bool, typer.Option("--dry-run", help="show the members and the job script, start nothing")] = False,
    json: Json = False,
) -> None:
    """Train a run with many settings.

    Grid, list or random; as one Slurm array, or here with --local. The same command again runs what is not finished.
    """
    from launcher.sweep import sweep

    raise typer.Exit(sweep(file, overrides or [], runs, local=local, dry=dry, as_json=json))


_MATRIX = """\b
A matrix file:
  name: grafts
  run: pets.yaml                        what all have in common
  sources:
    imagenet: {model.source: "torchvision:resnet18", model.weights: DEFAULT}
    digits:   {model.source: "run:digits"}
  targets:
    pets:     {data.train: "folder:pets/train", data.val: "folder:pets/val"}
  strategies:
    head:     {strategy: {kind: head}}
    full:     {strategy: {kind: full}, optimizer.lr: 1e-4}
  scratch: {optimizer.lr: 1e-2}         also each network without its weights
"""


@app.command(epilog=_MATRIX)
def matrix(
    file: Annotated[Path, typer.Argument(metavar="FILE", help="a matrix file (.yaml)")],
    overrides: Overrides = None,
    runs: Runs = RUNS,
    local: Annotated[bool, typer.Option("--local", help="train the members here, one after the other, without Slurm")] = False,
    dry: Annotated[bool, typer.Option("--dry-run", help="show the members and the job script, start nothing")] = False,
    json: Json = False,
) -> None:
    """Train every source on every target with every strategy: one sweep, one heat map.

    The same command again runs what is not finished; `graft runs --sweep NAME` shows the matrix, `graft report NAME` draws it.
    """
    from launcher.sweep import sweep

    asked = ["sweep.search.kind=matrix", *(overrides or [])]
    raise typer.Exit(sweep(file, asked, runs, local=local, dry=dry, as_json=json))


@app.command()
def watch(
    runs: Runs = RUNS,
    every: Annotated[float, typer.Option("--every", min=0.5, help="seconds between two looks")] = 5.0,
) -> None:
    """Watch all runs: a live table with the curves of their losses."""
    from launcher.watch import watch

    watch(runs, every=every)


@app.command()
def cancel(names: Names, runs: Runs = RUNS) -> None:
    """Stop runs; each saves first."""
    from launcher.cancel import cancel

    raise typer.Exit(cancel(names, runs))


@app.command()
def resume(names: Names, runs: Runs = RUNS) -> None:
    """Go on with runs that stopped: as Slurm jobs, if that is what they were, else here."""
    from launcher.cancel import resume

    raise typer.Exit(resume(names, runs))


@app.command()
def doctor(
    cluster: Annotated[
        str | None, typer.Argument(metavar="CLUSTER", help="name of a cluster file; none: the default one")
    ] = None,
    runs: Runs = RUNS,
    login_only: Annotated[bool, typer.Option("--login-only", help="do not start a job to look at two nodes")] = False,
    wait: Annotated[float, typer.Option("--wait", min=0, help="seconds that this job may wait in the queue")] = 180.0,
    json: Json = False,
) -> None:
    """Check a site: commands, partitions, nodes, file system, network; and say what to do about each failure."""
    from launcher.doctor import doctor

    raise typer.Exit(doctor(cluster, runs, login_only=login_only, as_json=json, patience=wait))


@app.command()
def fetch(run: RunFile, overrides: Overrides = None, runs: Runs = RUNS) -> None:
    """Bring a run's weights and data into the local caches, for nodes without a network."""
    from launcher.fetch import fetch

    raise typer.Exit(fetch(run, overrides or [], runs))


@app.command(name="find-lr", context_settings={"allow_extra_args": True, "ignore_unknown_options": True, "help_option_names": []})
def find_lr(context: typer.Context, run: RunFile, runs: Runs = RUNS) -> None:
    """Find a learning rate: some steps at a rising one, a plot, and suggestions; nothing of the run is trained."""
    import os

    from launcher.python import environment, trainer_command

    target = run if run.startswith("-") or Path(run).exists() or not (runs / run).exists() else str(runs / run)
    words = trainer_command("find-lr", target, *context.args, "--runs", str(runs))
    os.execve(words[0], words, environment())


@app.command()
def sync(
    names: Annotated[list[str] | None, typer.Argument(metavar="[RUN…]", help="runs; none: all that are offline")] = None,
    runs: Runs = RUNS,
    follow: Annotated[bool, typer.Option("--follow", "-f", help="go on while the runs go on")] = False,
    json: Json = False,
) -> None:
    """Send offline W&B runs to the server, while they run or later; no point twice."""
    from launcher.sync import sync

    raise typer.Exit(sync(names or [], runs, follow=follow, as_json=json))


@app.command()
def cache(
    keys: Annotated[list[str] | None, typer.Argument(metavar="KEY…", help="only these (or all that begin so)")] = None,
    remove: Annotated[bool, typer.Option("--remove", help="remove the named ones, or those of --older")] = False,
    older: Annotated[float | None, typer.Option("--older", metavar="DAYS", min=0, help="only what is unused for so long")] = None,
    folder: Annotated[Path | None, typer.Option("--path", metavar="DIR", help="the data.cache.path of these runs")] = None,
    json: Json = False,
) -> None:  # fmt: skip
    """List the features and decoded images that runs kept, and remove what is not needed any more."""
    from launcher import cache

    found = cache.find(keys or [], folder, older)
    if remove:
        cache.remove(found, named=bool(keys) or older is not None)
    if json:
        print_json([one.as_json() for one in found])
    else:
        print(cache.text(found, removed=remove))


@app.command(name="models", context_settings=PASS_ON)
def models_(context: typer.Context, runs: Runs = RUNS) -> None:
    """List what can be grafted onto: graft models [PATTERN]; one name is described."""
    from launcher.python import environment, trainer_command

    words = trainer_command("models", "--runs", str(runs), *context.args)
    os.execve(words[0], words, environment())
