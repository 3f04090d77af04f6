"""`graft submit`: a checked run, a snapshot of its code and the exact script of its job, given to Slurm."""

from __future__ import annotations

import json
import os
import time
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from launcher import pace, script, secrets, slurm, snapshot
from launcher.cluster import Cluster, load_cluster
from launcher.fetch import missing
from launcher.request import job_of, merged, node_of
from launcher.runs import last_checkpoint
from launcher.snapshot import Code
from launcher.start import Prepared, checked, locate
from trainer.config import GraftError, RefusedError, Run, UserError, dump
from trainer.config.model import Model
from trainer.rundir import RunDir, locked, write_atomically
from trainer.rundir.lease import held_by

_PATIENCE = 4.0  # seconds of looking at a lease of another host, after the queue was asked


@dataclass(frozen=True)
class Submission:
    """A run that was checked for a site; nothing was written yet.

    `asked` is the run with the cluster's values, `code` that of the working directory, `kept` the snapshot that the run goes on
    with unless changes are accepted.
    """

    prepared: Prepared
    asked: Run
    cluster: Cluster
    code: Code
    kept: Code | None
    pace: pace.Pace | None = None  # as runs like it went

    @property
    def rundir(self) -> RunDir:
        return self.prepared.rundir

    def code_of(self, *, accept_changes: bool) -> Code:
        """The snapshot that the job would run."""
        return self.kept if self.kept is not None and (not accept_changes or self.code.top is None) else self.code


@dataclass(frozen=True)
class Submitted:
    """What became of a submission; `job` is none for a run that is done already."""

    name: str
    job: str | None
    cluster: str | None
    folder: str
    script: str
    asks: str
    happens: str
    code: str
    notes: tuple[str, ...] = ()

    def as_json(self) -> dict[str, Any]:
        return asdict(self)

    def text(self) -> str:
        """For a person: what was submitted, and how to look after it."""
        if self.job is None:
            return f"{self.name} is done already; its result is in {self.folder}"
        rows = [f"{self.name} is job {self.job}: {self.asks}", f"  {self.happens}", f"  code: {self.code}"]
        rows += [f"  {note}" for note in self.notes]
        return "\n".join([*rows, f"  graft status {self.name}   graft logs -f {self.name}   graft cancel {self.name}"])


def prepare(target: str, overrides: list[str], runs: Path) -> Submission:
    """Check a run file, or a run folder, for its cluster. Raises UserError for what cannot work there; nothing is written."""
    run, rundir = locate(target, overrides, runs)
    cluster = load_cluster(run.resources.cluster)
    asked = merged(run, cluster)
    code = snapshot.look(Path.cwd(), rundir.code, _no_code(run, rundir))
    begun = rundir.exists() and not rundir.untouched()
    own = bool(code.record()) and (begun or not Path(target).is_file())
    written = _moved(run, code, rundir, begun=begun)
    prepared = checked(asked, rundir, node_of(asked, cluster), written=written)
    if not cluster.network:
        weights_are_here(run, rundir, cluster)
    kept = snapshot.kept(rundir.code) if own else None
    return Submission(
        prepared,
        asked,
        cluster,
        code,
        kept,
        pace.past(asked, prepared.plan, rundir, runs, card=(cluster.gpu_type or "").partition("-")[0]),
    )


def script_of(submission: Submission, *, accept_changes: bool = False) -> str:
    """The text of the job script, as `submit` writes it. Raises UserError, or RefusedError for a secret in it."""
    rundir, code = submission.rundir, submission.code_of(accept_changes=accept_changes)
    job = job_of(
        submission.asked, submission.cluster, submission.prepared.plan, code, name=submission.prepared.run.name, logs=rundir.logs,
        folder=rundir.path, flags=["--accept-changes"] * accept_changes,
    )  # fmt: skip
    text = script.render(script.template(script.TRAIN), job)
    for what, written in (("the job script", text), ("the run file", dump(submission.prepared.run))):
        name = secrets.held_in(written, secrets.values())
        if name is not None:
            raise RefusedError(
                f"{what} would hold the value of ${name}, and others can read it; keep keys in files of yours, such as ~/.netrc"
            )
    return text


def submit(submission: Submission, *, accept_changes: bool = False) -> Submitted:
    """Write the run folder, its snapshot and its script, and hand it in. What fails leaves a folder that can be submitted again.

    Raises RefusedError when the run is queued or held already, or its folder holds another run.
    """
    prepared, rundir, run = submission.prepared, submission.rundir, submission.prepared.run
    if prepared.done:
        return _submitted(submission, None, "", ())
    if not slurm.available():
        raise UserError("sbatch is not on this machine: `graft submit` works on a login node (here, `graft train` trains)")
    text = script_of(submission, accept_changes=accept_changes)
    rundir.create()
    with locked(rundir.logs / "submit.lock"):  # one submission of a run at a time
        _refuse_busy(rundir)
        rundir.prepare(run, accept_changes=accept_changes)
        told, notes = _snapshot(submission, accept_changes=accept_changes)
        if prepared.difference:
            rundir.clear_markers()  # what ended was the run with the old settings
        write_atomically(rundir.path / "job.sbatch", text)
        return _submitted(submission, _hand_in(rundir, run.resources.cluster), told, notes)


def submit_folder(rundir: RunDir) -> str:
    """Hand a run folder's own job in again, with its script and its snapshot; returns the job's id.

    A folder without a script of its own (a member of a sweep) gets one: that of its array, which job.json names as `script`, or
    a new one. Raises RefusedError for a run that is done, queued or held.
    """
    marker = rundir.marker()
    if marker is not None and marker.state == "DONE":
        raise RefusedError(f"{rundir.name} is done already; its result is in {rundir.path}")
    own, body = rundir.path / "job.sbatch", Path(str(rundir.read_json(rundir.job).get("script") or ""))
    if not own.is_file() and not body.is_file():
        return submit(prepare(str(rundir.path), [], rundir.path.parent)).job or ""
    rundir.create()
    with locked(rundir.logs / "submit.lock"):  # one submission of a run at a time
        _refuse_busy(rundir)
        if not own.is_file():
            write_atomically(own, script.for_member(body.read_text(encoding="utf-8"), rundir.path, rundir.logs))
        return _hand_in(rundir, rundir.read_json(rundir.job).get("cluster"))


def _hand_in(rundir: RunDir, cluster: str | None) -> str:
    job = slurm.submit(rundir.path / "job.sbatch")
    now: dict[str, Any] = {"id": job, "cluster": cluster, "submitted": round(time.time(), 3), "restart": 0, "nodes": []}
    # the job itself writes this too when it starts, which may be now: what it wrote of this job stays
    if rundir.read_json(rundir.job).get("id") != job:
        try:
            write_atomically(rundir.job, json.dumps(now) + "\n")
        except OSError as error:
            raise GraftError(
                f"{rundir.name} is job {job}, and {rundir.job} cannot be written: {error.strerror}; `scancel {job}`, mend that "
                "and submit again"
            ) from None
    return job


def _snapshot(submission: Submission, *, accept_changes: bool) -> tuple[str, tuple[str, ...]]:
    """Make the snapshot, or keep the one there is; returns what it is, and what is to be said about it."""
    code, chosen = submission.code, submission.code_of(accept_changes=accept_changes)
    notes: list[str] = []
    if chosen is submission.kept:
        told = f"that of the first submission, {snapshot.told(chosen.record())}"
        if code.top == chosen.top and snapshot.tree(code) != chosen.record().get("tree"):
            notes.append("the code changed since, and the run goes on with its own; --accept-changes takes the new")
    elif code.top is None:
        git = any((folder / ".git").exists() for folder in (code.here, *code.here.parents))
        why = "and git is not on this machine" if git else "which is no git repository"
        told = f"that of {code.here}, {why}: nothing is copied, changes reach a job that waits"
    else:
        told = f"{snapshot.told(snapshot.take(code))}; copied into {code.folder}"
    for model in submission.prepared.run.models.values():
        scheme, _, rest = model.source.partition(":")
        if scheme == "python":
            snapshot.needed(chosen, Path(rest.rpartition(":")[0]))
    return told, tuple(notes)


def _submitted(submission: Submission, job: str | None, code: str, notes: tuple[str, ...]) -> Submitted:
    planned, resources, rundir = submission.prepared.plan, submission.asked.resources, submission.rundir
    ranks = planned.world_size // planned.nodes
    unit = "GPU" if planned.device == "cuda" else "process"
    each = f"{ranks} {unit}{'' if ranks == 1 else 's' if unit == 'GPU' else 'es'}"
    asks = [f"{planned.nodes} node{'s' if planned.nodes > 1 else ''} with {each}", *filter(None, (resources.partition,))]
    asks.append(f"at most {resources.time}" if resources.time else "the partition's time limit")
    return Submitted(
        name=submission.prepared.run.name, job=job, cluster=resources.cluster, folder=str(rundir.path),
        script=str(rundir.path / "job.sbatch"), asks=", ".join(asks), happens=submission.prepared.happens, code=code,
        notes=notes if submission.pace is None else (*notes, submission.pace.text(resources.time)),
    )  # fmt: skip


def _moved(run: Run, code: Code, rundir: RunDir, *, begun: bool) -> Run:
    """The run with its networks' files in the snapshot, so that editing them while the job waits changes nothing."""
    # begun without a snapshot (`graft train`): its settings stay what they are
    kept = {model.source for model in rundir.load().models.values()} if begun else set()

    def moved(model: Model) -> Model:
        scheme, _, rest = model.source.partition(":")
        file, _, factory = rest.rpartition(":")
        own = scheme == "python" and Path(file).is_absolute() and not Path(file).is_relative_to(rundir.code)
        if not own or model.source in kept:
            return model
        return model.model_copy(update={"source": f"python:{code.moved(Path(file))}:{factory}"})

    return run.moved(moved)


def _no_code(run: Run, rundir: RunDir) -> list[Path]:
    """Paths in which new files are no code: the runs, the data."""
    runs = rundir.path.parent
    sources = [source.partition(":")[2].partition("?")[0] for source in run.sources.values()]
    return [
        runs,
        *(file.parent for file in runs.glob("*/run.yaml")),
        rundir.path,
        *(Path(s) for s in sources if s.startswith("/")),
    ]


def _refuse_busy(rundir: RunDir) -> None:
    """Raise RefusedError when a job of this run is in the queue, or a process holds its folder.

    A job is known by its id, and by its script: that was handed in, even if the submission was killed before it noted the id.
    """
    noted, own = rundir.read_json(rundir.job).get("id"), str(rundir.path / "job.sbatch")
    # SQUEUE_STATES and the like of the user's would hide jobs
    environment = {k: v for k, v in os.environ.items() if not k.startswith("SQUEUE_")}
    text = slurm.command("squeue", "--noheader", "--me", "--array", "--format=%i %T %o", environment=environment)
    for line in text.splitlines():
        job, state, *handed_in = line.split(" ", 2)
        if job == noted or handed_in == [own]:
            how = "wait until it has ended" if state == "COMPLETING" else f"`graft cancel {rundir.name}` ends it"
            raise RefusedError(f"{rundir.name} is job {job} already, which is {state.lower()}; {how}")
    holder = held_by(rundir.lease, patience=_PATIENCE)
    if holder is not None:
        raise RefusedError(f"the run folder {rundir.path} is in use by {holder}; wait for it or stop it first")


def weights_are_here(run: Run, rundir: RunDir, cluster: Cluster) -> None:
    """Refuse weights that nodes without a network would have to download. Raises UserError."""
    if last_checkpoint(rundir) is None:  # later on the pretrained weights are not read again
        lacking = missing(run, {**os.environ, **cluster.environment})
        if lacking:
            raise UserError("; ".join(lacking) + " (the cluster file says network: false, so that a job cannot)")
