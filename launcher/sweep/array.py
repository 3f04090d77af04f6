"""A sweep as one Slurm array: what it asks for, which members are queued already, and handing the others in.

Every submission has a folder of its own, `arrays/NNNN` (its members, one folder a line, and its two scripts), since tasks that
wait read their line when they start. The script's path, which squeue shows, tells whose a task is: so a member is not submitted
twice even if this command was killed before it could note the job. The code is copied once for a sweep: its members are compared.
"""

from __future__ import annotations

import contextlib
import json
import os
import re
import time
from collections.abc import Container, Sequence
from dataclasses import dataclass
from pathlib import Path

from launcher import script, secrets, slurm, snapshot
from launcher.cluster import load_cluster
from launcher.plan import Plan
from launcher.request import job_of, merged, node_of
from launcher.script import Job
from launcher.snapshot import Code
from launcher.submit import weights_are_here
from launcher.sweep.check import Check
from launcher.sweep.folders import write_members, write_sweep
from launcher.sweep.members import Member, Sweep, shown
from trainer.config import GraftError, RefusedError, UserError
from trainer.rundir import RunDir
from trainer.rundir.lease import held_by
from trainer.rundir.sweep import SweepDir

_PATIENCE = 2.0  # seconds of looking at a lease of another host
_ENDED = {
    "BOOT_FAIL", "CANCELLED", "COMPLETED", "DEADLINE", "FAILED", "NODE_FAIL", "OUT_OF_MEMORY", "PREEMPTED", "REVOKED", "TIMEOUT",
}  # fmt: skip


@dataclass(frozen=True)
class Array:
    """What a sweep asks of its cluster; nothing was written yet.

    `code` is the snapshot, to be taken when `fresh`; `plan` is that of one member, `job` the body of all.
    """

    sweep: Sweep
    code: Code
    fresh: bool
    plan: Plan
    job: Job

    def scripts(self, number: int, count: int) -> tuple[str, str]:
        """The script of the array and the body of a member, for the submission of that number, of `count` members.

        Raises UserError for what no script can hold, and RefusedError for a secret.
        """
        folder = submission(self.sweep.folder, number)
        limit = self.sweep.plan.file.parallel
        array = f"0-{count - 1}" + (f"%{limit}" if limit is not None else "")
        body = script.render(script.template(script.TRAIN), self.job)
        job = Job(**{**self.job.__dict__, "array": array})
        whole = script.render_array(
            script.template(script.ARRAY), job, members=folder / "members.txt", body=folder / script.TRAIN
        )
        for text in (whole, body):
            _no_secret("the job script", text, secrets.values())
        return whole, body

    def told(self) -> list[str]:
        """What the members run: the code that was copied, or that they go on with. After the submission."""
        if self.code.top is None:
            return [f"that of {self.code.here}, which is no git repository: nothing is copied, changes reach members that wait"]
        said = snapshot.told(self.code.record())
        if self.fresh:
            return [f"{said}; copied into {self.code.folder}"]
        now = snapshot.look(Path.cwd(), self.code.folder, _no_code(self.sweep))
        lines = [f"that of the first submission, {said}"]
        if now.top == self.code.top and snapshot.tree(now) != self.code.record().get("tree"):
            lines.append(
                "it changed since, and the members go on with theirs, so that they can be compared; sweep.name=… takes the new"
            )
        return lines


def submission(folder: SweepDir, number: int) -> Path:
    """The folder of one submission."""
    return folder.arrays / f"{number:04d}"


def next_number(folder: SweepDir) -> int:
    numbers = [int(path.name) for path in folder.arrays.glob("[0-9]*") if path.name.isdigit()]
    return max(numbers, default=0) + 1


def snapshot_of(sweep: Sweep, busy: Container[str]) -> tuple[Code, bool]:
    """The snapshot that the sweep goes on with, or that of the working directory, to be taken: and whether it is to be taken.

    Once a member has learnt something, or waits for its turn (`busy`: names), all go on with the code that it has.
    """
    folder = sweep.folder.path / "code"
    begun = any(member.name in busy or not member.rundir.untouched() for member in sweep.members)
    if begun and (folder / "code.json").is_file():
        return snapshot.kept(folder), False
    code = snapshot.look(Path.cwd(), folder, _no_code(sweep))
    return code, code.top is not None


def _no_code(sweep: Sweep) -> list[Path]:
    """Paths in which new files are no code: the runs, the data."""
    sources = {source for member in sweep.members for source in member.run.sources.values()}
    paths = [Path(source.partition(":")[2].partition("?")[0]) for source in sorted(sources)]
    return [sweep.folder.path.parent, *(path for path in paths if path.is_absolute())]


def ask(sweep: Sweep, code: Code, *, fresh: bool) -> Array:
    """Check all members for their cluster. Raises UserError for what cannot work there, with the member."""
    clusters = {member.run.resources.cluster for member in sweep.members}
    if len(clusters) > 1:
        raise UserError("the members name different clusters; a sweep is one array of one cluster")
    cluster = load_cluster(clusters.pop())
    asked: dict[str, tuple[Member, Plan, Job]] = {}
    check, hidden, cached = Check(), secrets.values(), set[tuple[tuple[str, str], ...]]()
    for member in sweep.members:
        run = merged(member.run, cluster)
        try:
            machine = node_of(run, cluster)
            weights = tuple((model.source, model.weights) for model in run.models.values())
            if not cluster.network and weights not in cached:
                weights_are_here(run, member.rundir, cluster)
                cached.add(weights)
        except UserError as error:
            raise UserError(f"{member.name} ({shown(member.settings)}): {error}") from None
        worked_out = check.plan(member, run, machine)
        _no_secret("the run file", member.text, hidden)
        wants = run.resources.model_dump_json() + run.parallel.model_dump_json()
        if wants not in asked:
            job = job_of(run, cluster, worked_out, code, name=sweep.name, logs=sweep.folder.logs, folder=None)
            asked[wants] = member, worked_out, job
            _same_job(asked)
    _, worked_out, job = next(iter(asked.values()))
    return Array(sweep, code, fresh, worked_out, job)


def tasks() -> dict[str, tuple[str, Path]]:
    """State and script of each job of this user that waits or runs: one squeue call."""
    environment = {k: v for k, v in os.environ.items() if not k.startswith("SQUEUE_")}
    text = slurm.command("squeue", "--noheader", "--me", "--array", "--states=all", "--format=%i|%T|%o", environment=environment)
    found = {}
    for line in text.splitlines():
        job, _, rest = line.partition("|")
        state, _, command = rest.partition("|")
        if state not in _ENDED:
            found[job] = state, Path(command)
    return found


def queued(folder: SweepDir, members: Sequence[RunDir]) -> dict[str, tuple[str, str]]:
    """Job and state of each member that waits or runs, by the member's name."""
    alive = tasks()
    lists: dict[Path, list[str]] = {}
    found: dict[str, tuple[str, str]] = {}
    for job, (state, command) in alive.items():
        own, task = command.parent, job.partition("_")[2]
        if own.parent == folder.arrays and task.isdigit():
            if own not in lists:
                try:
                    lists[own] = (own / "members.txt").read_text(encoding="utf-8").splitlines()
                except OSError:  # the folder was removed; its tasks end when they start
                    lists[own] = []
            if int(task) < len(lists[own]):
                found[Path(lists[own][int(task)]).name] = job, state
    for member in members:  # handed in alone, by `graft resume`
        if alive and member.name not in found and member.job.exists():
            job = str(member.read_json(member.job).get("id"))
            if job in alive:
                found[member.name] = job, alive[job][0]
    return found


def held_here(members: list[Member]) -> dict[str, str]:
    """Who trains each member that a process holds, by name."""
    found = {}
    for member in members:
        if member.rundir.lease.exists() and (holder := held_by(member.rundir.lease, patience=_PATIENCE)) is not None:
            found[member.name] = str(holder)
    return found


def submit(array: Array, members: list[Member]) -> tuple[str, list[Member]]:
    """Write the folders and hand the members in as one array; returns the job's id and the members in it.

    A site takes only so many at once: then these are the first of them.
    """
    sweep = array.sweep
    members = members[: most()]
    folder = submission(sweep.folder, next_number(sweep.folder))
    whole, body = array.scripts(int(folder.name), len(members))
    code = array.code
    write_sweep(sweep)
    if array.fresh:
        snapshot.take(code)
    for model in members[0].run.models.values():
        scheme, _, rest = model.source.partition(":")
        if scheme == "python":
            snapshot.needed(code, Path(rest.rpartition(":")[0]))
    write_members(members)
    try:
        folder.mkdir(parents=True)
        (folder / "members.txt").write_text("".join(f"{member.rundir.path}\n" for member in members), encoding="utf-8")
        (folder / script.TRAIN).write_text(body, encoding="utf-8")
        (folder / script.ARRAY).write_text(whole, encoding="utf-8")
    except OSError as error:
        raise RefusedError(f"{folder} cannot be written: {error.strerror}") from None
    for member in members:
        member.rundir.job.unlink(missing_ok=True)  # of a job that ended
    try:
        job = slurm.submit(folder / script.ARRAY)
    except GraftError as error:
        raise type(error)(f"{error}\nthe same command goes on: it finds what reached Slurm nevertheless") from None
    for index, member in enumerate(members):
        note(member, f"{job}_{index}", folder / script.TRAIN)
    return job, members


def most() -> int:
    """How many members an array of this site can have."""
    said = re.search(r"^MaxArraySize\s*=\s*([0-9]+)", slurm.command("scontrol", "show", "config"), re.MULTILINE)
    size = int(said[1]) if said else 1001
    if size < 1:
        raise RefusedError("this site takes no job arrays (MaxArraySize is 0): train the members here with --local")
    return size  # tasks are counted from 0, and the last may be one less


def note(member: Member, job: str, body: Path | None = None) -> None:
    """Write a member's job.json, unless there is one: the member, which may run by now, writes it itself.

    `body` is the script with which `graft resume` hands it in alone, with the sweep's code.
    """
    facts: dict[str, object] = {
        "id": job,
        "cluster": member.run.resources.cluster,
        "submitted": round(time.time(), 3),
        "restart": 0,
        "nodes": [],
        **({"script": str(body)} if body is not None else {}),
    }
    with contextlib.suppress(FileExistsError), member.rundir.job.open("x", encoding="utf-8") as file:
        file.write(json.dumps(facts) + "\n")


def _same_job(asked: dict[str, tuple[Member, Plan, Job]]) -> None:
    """Refuse members that ask for different resources."""
    (first, _, job), *_ = asked.values()
    *_, (last, _, other) = asked.values()
    differ = [name for name, value in job.__dict__.items() if other.__dict__[name] != value]
    if differ:
        what = ", ".join(f"{name} {job.__dict__[name]} and {other.__dict__[name]}" for name in differ)
        raise UserError(
            f"the members {first.name} ({shown(first.settings)}) and {last.name} ({shown(last.settings)}) ask for different "
            f"resources ({what}), and an array has one request for all; make it two sweeps"
        )


def _no_secret(what: str, text: str, hidden: dict[str, str]) -> None:
    name = secrets.held_in(text, hidden)
    if name is not None:
        raise RefusedError(
            f"{what} would hold the value of ${name}, and others can read it; keep keys in files of yours, such as ~/.netrc"
        )
