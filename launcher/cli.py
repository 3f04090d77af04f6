"""The `graft` command. Everything heavy is imported in the command that needs it, so that `graft --help` starts at once."""

from __future__ import annotations

import errno
import gc
import os
import signal
import sys
from contextlib import suppress
from pathlib import Path
from typing import Annotated, Any

import typer

# what a file system does to a program that does nothing wrong
_OUTSIDE = (errno.ENOSPC, errno.EDQUOT, errno.EROFS, errno.EACCES, errno.EPERM, errno.EIO, errno.ESTALE)
_FIRST_STEPS = """\b
First steps:
  graft demo                     see it work, without any data of your own
  graft plan pets.yaml           what a run file would do
  graft train pets.yaml          train; Ctrl-C stops, the same command goes on
  graft evaluate pets            the figures of the run called pets
  graft predict pets new.jpg     what is in a picture
"""
_EXAMPLES = """\b
Examples:
  graft {command} pets.yaml
  graft {command} pets.yaml name=second optimizer.lr=1e-3 train.epochs=20
  graft {command} pets.yaml --processes 2
"""

app = typer.Typer(
    no_args_is_help=True, add_completion=False, rich_markup_mode=None, pretty_exceptions_enable=False,
    help="Fine-tune pretrained image networks: a run file becomes a trained model.", epilog=_FIRST_STEPS,
    context_settings={"help_option_names": ["-h", "--help"]},
)  # fmt: skip

RunFile = Annotated[str, typer.Argument(metavar="RUN", help="a run file (.yaml), or a run folder to go on with")]
RunName = Annotated[str, typer.Argument(metavar="RUN", help="a run folder, or its name below --runs")]
Overrides = Annotated[list[str] | None, typer.Argument(metavar="KEY=VALUE", help="settings in place of the run file's")]
Runs = Annotated[Path, typer.Option("--runs", metavar="DIR", help="where the run folders are")]
Json = Annotated[bool, typer.Option("--json", help="one JSON object on stdout")]
Processes = Annotated[int | None, typer.Option("--processes", min=1, help="ranks on this machine")]
Accept = Annotated[bool, typer.Option("--accept-changes", help="go on with a run folder although the settings changed")]
Retry = Annotated[bool, typer.Option("--retry", help="start although the same failure came three times")]
RUNS = Path("runs")


def main() -> None:
    """The entry point: errors become one message and an exit code."""
    signal.signal(signal.SIGINT, lambda number, frame: sys.exit(130))
    # pydantic looks through every installed distribution for plugins otherwise (30 ms)
    os.environ.setdefault("PYDANTIC_DISABLE_PLUGINS", "__all__")
    from launcher import cli_cluster, cli_finished  # noqa: F401 (their commands)

    gc.disable()  # a fifth of the time of a short command; what runs long turns it on again
    try:
        try:
            app(prog_name="graft")
        finally:
            sys.stdout.flush()  # what cannot be written is said here, not by the interpreter as it goes
    except BrokenPipeError:  # `graft … | head`
        _let_go()
        sys.exit(1)
    except Exception as error:
        from trainer.config import GraftError

        if isinstance(error, OSError) and error.errno in _OUTSIDE:
            where = error.filename or "the output, or a file of the run folder"
            error = GraftError(f"{where}: {error.strerror}; mend that, and try again")
        if not isinstance(error, GraftError):
            raise
        if "--json" in sys.argv:
            with suppress(OSError):  # it may be the output itself that cannot be written
                print_json({"error": {"code": error.code, "message": str(error)}})
        try:
            sys.stdout.flush()
        except OSError:
            _let_go()
        print(f"graft: {error}", file=sys.stderr)
        sys.exit(error.code)


def _let_go() -> None:
    """Send what is still buffered for the output nowhere."""
    os.dup2(os.open(os.devnull, os.O_WRONLY), 1)


def print_json(value: Any) -> None:
    import json

    print(json.dumps(value, indent=2))


def _version(asked: bool) -> None:
    if asked:
        from importlib.metadata import PackageNotFoundError, version

        try:
            print(f"graft {version('graft-trainer')}")
        except PackageNotFoundError:  # a checkout that was not installed
            print("graft, not installed")
        raise typer.Exit


@app.callback()
def _options(
    version: Annotated[bool, typer.Option("--version", callback=_version, is_eager=True, help="show the version")] = False,
) -> None:
    pass


@app.command(epilog=_EXAMPLES.format(command="train"))
def train(
    run: RunFile, overrides: Overrides = None, runs: Runs = RUNS, processes: Processes = None, json: Json = False,
    accept_changes: Accept = False, retry: Retry = False,
    scratch: Annotated[bool, typer.Option("--scratch", help="then the same without its weights, and a page with both")] = False,
) -> None:  # fmt: skip
    """Train here and now.

    On every GPU, or on the CPU; the same command again goes on where it stopped.
    """
    if scratch:
        from launcher.scratch import compare

        if json:
            raise typer.BadParameter("--scratch trains two runs; ask for each with `graft status NAME --json`")
        raise typer.Exit(compare(run, overrides or [], runs, processes, accept_changes=accept_changes, retry=retry))
    from launcher import start

    prepared = start.prepare(run, overrides or [], runs, processes)
    raise typer.Exit(start.train(prepared, accept_changes=accept_changes, retry=retry, as_json=json))


@app.command(epilog=_EXAMPLES.format(command="plan"))
def plan(
    run: RunFile, overrides: Overrides = None, runs: Runs = RUNS, processes: Processes = None, json: Json = False,
    script: Annotated[bool, typer.Option("--script", help="print the job script that `graft submit` would hand in")] = False,
    no_memory: Annotated[bool, typer.Option("--no-memory", help="what is known without the network, at once")] = False,
    card: Annotated[
        list[str] | None, typer.Option("--card", help="a micro-batch that fits this GPU: h100, a100-40, … or its memory, 24GiB")
    ] = None,
    gpus: Annotated[int | None, typer.Option("--gpus", min=1, help="on so many GPUs, with what failures cost")] = None,
    mtbf: Annotated[float | None, typer.Option("--mtbf", help="hours between failures of a node (else published)")] = None,
    save: Annotated[float | None, typer.Option("--save", help="seconds that a checkpoint holds the training up (10)")] = None,
    restart: Annotated[float | None, typer.Option("--restart", help="seconds from a failure to the next step (300)")] = None,
    probe: Annotated[bool, typer.Option("--probe", help="measure loader and steps on this machine, for some seconds")] = False,
) -> None:  # fmt: skip
    """Show what a run would do, what would learn and what memory it needs, and start nothing."""
    from launcher import foresee

    failures = foresee.Failures(mtbf, save, restart)
    if script:
        given = {"--json": json, "--card": card, "--no-memory": no_memory, "--probe": probe}
        print(
            foresee.script(run, overrides or [], runs, processes, gpus, failures, [name for name in given if given[name]]), end=""
        )
        return
    found = foresee.foresee(
        run, overrides or [], runs, processes, memory=not no_memory, cards=card or [], gpus=gpus, failures=failures, probe=probe
    )  # fmt: skip
    if json:
        print_json(found.as_json())
    else:
        found.show()


@app.command()
def schema(cluster: Annotated[bool, typer.Option("--cluster", help="that of a cluster file")] = False) -> None:
    """Print the JSON schema of a run file, for editors."""
    from trainer.config import schema

    if cluster:
        from launcher.cluster import Cluster

        print_json(schema(Cluster))
    else:
        print_json(schema())


@app.command()
def demo(runs: Runs = RUNS, fresh: Annotated[bool, typer.Option("--fresh", help="train again what is there")] = False) -> None:
    """Try it: real digits, no network, some two minutes on two cores.

    Pretrains, grafts, compares with training from scratch, and writes a report.
    """
    from launcher.demo import run_demo

    raise typer.Exit(run_demo(runs, fresh=fresh))


@app.command(name="runs")
def runs_(
    runs: Runs = RUNS, json: Json = False,
    sort: Annotated[str, typer.Option("--sort", metavar="best|when|name|state", help="else the latest comes last")] = "",
    state: Annotated[str, typer.Option("--state", help="only runs in these states: running,failed")] = "",
    last: Annotated[int | None, typer.Option("--last", min=1, help="only the latest so many")] = None,
    sweep: Annotated[str | None, typer.Option("--sweep", metavar="NAME", help="the members of a sweep, the best first")] = None,
) -> None:  # fmt: skip
    """List the runs: how far they got, and why those that wait or failed did."""
    if sweep is not None:
        from launcher.sweep.results import show as show_sweep

        return show_sweep(sweep, runs, as_json=json)
    from launcher.queue import Queue
    from launcher.runs import choose, every

    queue = Queue()
    found = every(runs, queue)
    chosen = choose(found, sort=sort, states=state, last=last)
    if queue.problem:
        print(f"graft: states are as the run folders show them: {queue.problem}", file=sys.stderr)
    if json:
        print_json([status.as_json() for status in chosen])
    elif not chosen:
        print(f"none of the {len(found)} runs in {runs} is {state}" if found else f"no runs in {runs}; `graft demo` makes some")
    else:
        from launcher import table

        print(table.runs(chosen))


@app.command()
def status(run: RunName, runs: Runs = RUNS, json: Json = False) -> None:
    """Show where a run stands, what happened to it, and what to do next."""
    from launcher.detail import detail
    from launcher.runs import find

    found = detail(find(run, runs))
    if json:
        print_json(found.as_json())
    else:
        print(found.text())


@app.command()
def logs(
    run: RunName, runs: Runs = RUNS,
    follow: Annotated[bool, typer.Option("--follow", "-f", help="go on until the run has ended, with its exit code")] = False,
    rank: Annotated[int, typer.Option("--rank", min=0, help="whose log")] = 0,
    every: Annotated[bool, typer.Option("--all", help="of every rank, each line with its number")] = False,
    job: Annotated[bool, typer.Option("--job", help="what the Slurm job itself wrote")] = False,
) -> None:  # fmt: skip
    """Show the log of a run."""
    from launcher.follow import show
    from launcher.runs import find

    raise typer.Exit(show(find(run, runs), None if every else rank, job=job, follow=follow))
