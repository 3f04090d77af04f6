"""`graft doctor`: checks a site, from the login node and on two compute nodes, and says what to do about each failure."""

from __future__ import annotations

import contextlib
import errno
import signal
import tempfile
from collections.abc import Callable, Generator, Iterator
from dataclasses import replace
from pathlib import Path
from types import FrameType

from launcher import slurm
from launcher.cluster import Cluster, load_cluster
from launcher.doctor import folder, job, login, partition
from launcher.doctor.check import Check, failed, guarded, unchecked
from launcher.doctor.nodes import judge
from launcher.probe import files
from trainer.config import GraftError, UserError

PATIENCE = 180.0  # seconds that the job may wait for nodes

Watch = Callable[[str], None]


def doctor(cluster: str | None, runs: Path, *, login_only: bool, as_json: bool, patience: float = PATIENCE) -> int:
    """Check everything and show it as it comes; returns the exit code: 1 when something failed."""
    found: list[Check] = []
    with _ended_by_signals():
        if as_json:
            from launcher.cli import print_json

            found.extend(examine(cluster, runs, login_only=login_only, patience=patience))
            print_json([check.as_json() for check in found])
        else:
            from launcher.doctor.show import Screen

            screen = Screen()
            with screen.waiting() as watch:
                for check in examine(cluster, runs, login_only=login_only, patience=patience, watch=watch):
                    found.append(check)
                    screen.show(check)
            screen.end(found)
    return int(any(check.state == "failed" for check in found))


def examine(
    name: str | None, runs: Path, *, login_only: bool, patience: float = PATIENCE, watch: Watch = lambda text: None
) -> Iterator[Check]:
    """All checks, one after the other; those of the nodes come last, when their job has ended."""
    yield from login.commands()
    site: Cluster | None = None
    try:
        site = load_cluster(name)
    except UserError as error:
        yield failed("cluster file", str(error), "Correct it, or name another one: graft doctor NAME.")
    else:
        yield from login.cluster_file(name)
        advice = "Name a working `python` in the cluster file."
        yield from guarded("python of the jobs", login.python(site, at_nodes=not login_only), advice)
        yield from guarded("site file", login.site(site), "Correct the file that `site` names.")
    count, why = 0, "Slurm's commands are missing"
    if slurm.available():
        count, why = yield from _slurm(site)
    with _existing(runs) as (here, problem):
        if problem:
            yield failed("run folder", f"{here}: {problem}", "Choose a folder that you can write to with --runs FOLDER.")
            why = why or "the run folder cannot be written"
        else:
            yield from guarded("run folder", folder.check_folder(here), "Choose another folder with --runs FOLDER.")
        yield from folder.check_network()
        if login_only or why or site is None:
            found: Iterator[Check] = iter([unchecked("compute nodes", "--login-only" if login_only else why)])
        else:
            found = guarded("compute nodes", _nodes(site, here, count, patience, watch), "Read what Slurm says, and try again.")
        for check in found:
            yield replace(check, place="nodes")


def _slurm(site: Cluster | None) -> Generator[Check, None, tuple[int, str]]:
    """Slurm and the partition; returns how many nodes to look at (1 or 2), or 0 and why none."""
    yield from guarded("slurm version", login.version(), "See that Slurm's commands work: `sbatch --version`.")
    try:
        config = login.settings()
    except GraftError as error:
        yield failed("controller", str(error), "See `scontrol ping` and SLURM_CONF; ask the administrators if it stays away.")
        return 0, "the Slurm controller does not answer"
    yield from login.configuration(config)
    if site is None:
        return 0, "the cluster file has mistakes"
    known = partition.partitions()
    yield from partition.check_partition(site, known, config)
    name = partition.chosen(site, known)
    if name is None or name.split(",")[0] not in known:
        return 0, "there is no such partition"
    there = partition.nodes(name.split(",")[0])
    yield from partition.check_nodes(site, name, there)
    count = min(2, sum(node.fits(site) for node in there))
    if not count:
        return 0, "no node has what is asked for"
    asked = [*job.arguments(site, count), *([f"--time={site.time}"] if site.time else [])]
    yield from guarded("a job like ours", partition.check_permission(site, asked, config), "See `sbatch --test-only`.")
    return count, ""


def _nodes(site: Cluster, runs: Path, count: int, patience: float, watch: Watch) -> Iterator[Check]:
    outcome = job.look(site, runs, count, patience, watch)
    yield from judge(outcome, site, files.ahead(runs))


@contextlib.contextmanager
def _existing(runs: Path) -> Iterator[tuple[Path, str]]:
    """The run folder, made for the moment when it is not there yet; and what is wrong with it."""
    made: list[Path] = []
    path = runs.expanduser().absolute()
    try:
        try:
            for part in [*reversed(path.parents), path]:
                if not part.exists():
                    part.mkdir()
                    made.append(part)
            with tempfile.TemporaryFile(dir=path):
                problem = ""
        except OSError as error:
            problem = {errno.EROFS: "the file system is read-only", errno.ENOSPC: "the disk is full"}.get(
                error.errno or 0, error.strerror or str(error)
            )
        yield path, problem
    finally:
        for part in reversed(made):
            with contextlib.suppress(OSError):  # something else came to lie there meanwhile
                part.rmdir()


@contextlib.contextmanager
def _ended_by_signals() -> Iterator[None]:
    """While this runs, SIGTERM and SIGHUP end it as Ctrl-C does: what it left in the queue and on disk is cleared away."""

    def end(number: int, frame: FrameType | None) -> None:
        raise SystemExit(128 + number)

    before = {number: signal.signal(number, end) for number in (signal.SIGTERM, signal.SIGHUP)}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
