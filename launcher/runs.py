"""The runs of a folder: which there are, how far they got, how they ended."""

from __future__ import annotations

import os
import re
import time
from collections.abc import Callable, Iterable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from launcher import slurm
from launcher.glance import Glance, events, glance, number, ranks, rate
from launcher.queue import ACTIVE, WAITING, Job, Queue
from launcher.verdict import ORDER, Verdict, judge
from trainer.config import UserError, nearest
from trainer.rundir import RunDir
from trainer.rundir.metric import lower_is_better

_CHECKPOINT = re.compile(r"step-([0-9]+)")


@dataclass(frozen=True)
class Status:
    """A run as a table shows it.

    `total_samples` is none while nothing says how many there will be; `at` is the time (seconds since 1970) of the last thing it
    wrote; `rate` is samples a second, `eta` the seconds that are left at that rate; `start` when a job that waits is expected to
    start, `left` the seconds to the time limit of one that runs; `restarts` how often the job was queued again.
    """

    name: str
    folder: str
    state: str
    step: int
    samples: int
    total_samples: int | None
    best_metric: str | None
    best: float | None
    at: float
    reason: str
    loss: float | None = None
    rate: float | None = None
    eta: float | None = None
    host: str | None = None
    job: str | None = None
    partition: str | None = None
    nodes: str | None = None
    restarts: int = 0
    start: float | None = None
    left: int | None = None

    @property
    def share(self) -> float | None:
        """How much of the run is done, 0 to 1."""
        return min(1.0, self.samples / self.total_samples) if self.total_samples else None

    def as_json(self) -> dict[str, Any]:
        return asdict(self)


def find(run: str, runs: Path) -> RunDir:
    """The folder of a run that is given by its path, or by its name below `runs`. Raises UserError."""
    for folder in (Path(run), runs / run):
        if RunDir(folder).exists():
            return RunDir(folder.resolve())
    raise UserError(
        f"{run}: no run folder of that path, and no run of that name in {runs}{nearest(run, [r.name for r in folders(runs)])}"
    )


def folders(runs: Path) -> list[RunDir]:
    """All run folders in a folder."""
    try:
        names = os.listdir(runs)  # noqa: PTH208 (names alone, of thousands)
    except OSError:
        return []
    return [rundir for name in names if (rundir := RunDir(runs / name)).exists()]


def every(runs: Path, queue: Queue | None = None) -> list[Status]:
    """All runs of a folder, the latest last. Slurm is asked once, and only where a run was given to it."""
    return statuses(folders(runs), queue or Queue())


def statuses(rundirs: Iterable[RunDir], queue: Queue) -> list[Status]:
    """Where runs stand, the latest last."""
    return sorted((status for _, status in examine(rundirs, queue)), key=lambda s: s.at)


def status(rundir: RunDir, queue: Queue | None = None) -> Status:
    """Where a run stands."""
    return statuses([rundir], queue or Queue())[0]


def examine(rundirs: Iterable[RunDir], queue: Queue) -> list[tuple[Glance, Status]]:
    """Look at run folders, and at the queue where a job of theirs may be in it."""
    looks = [glance(rundir) for rundir in rundirs]
    ids = [str(look.job["id"]) for look in looks if look.job.get("id")]
    problem = ""
    if ids and slurm.available():
        queue.look()
        problem = queue.problem
    elif ids:
        problem = "Slurm's commands are not on this machine"
    # accounts are asked only for what the folder leaves open, and once for all of those
    unknown = [
        str(look.job["id"])
        for look in looks
        if look.job.get("id") and not problem and str(look.job["id"]) not in queue.jobs and _open(look)
    ]
    ended = queue.ended(unknown) if unknown else {}
    arrays = {one.partition("_")[0] for one in queue.jobs if "_" in one}
    for look in looks:
        # of a member that was cancelled while it waited Slurm keeps nothing, though it knows its array
        name = str(look.job.get("id") or "")
        if name in unknown and name not in ended and name.partition("_")[0] in arrays and not look.rundir.jobs.exists():
            ended[name] = "CANCELLED"
    return [(look, _status(look, queue.jobs, ended, problem)) for look in looks]


def _open(look: Glance) -> bool:
    """Whether the folder does not say how the last job ended."""
    return look.marker is None or look.marker.state == "REQUEUE"


def _status(look: Glance, jobs: dict[str, Job], ended: dict[str, str], problem: str) -> Status:
    name = str(look.job.get("id") or "")
    job, said = jobs.get(name), ended.get(name, "")
    if job is None and said in WAITING | ACTIVE:
        job = Job(name, said)  # of a colleague: squeue was asked for the jobs of this user
    verdict = judge(look, job, ended=said, problem=problem)
    current = job if job is not None and (job.waiting or job.active) else None
    step, samples, speed = look.step, look.samples, None
    if verdict.state in ("running", "stopping", "suspended"):
        step, samples, speed = _progress(look)
    left = max(0, look.total - samples) if look.total else None
    nodes = current.nodes if current else ""
    return Status(
        name=look.rundir.name, folder=str(look.rundir.path), state=verdict.state, step=step, samples=samples,
        total_samples=look.total, best_metric=look.metric, best=look.best, at=look.at, reason=verdict.reason, loss=look.loss,
        rate=speed, eta=left / speed if speed and left is not None else None, host=_host(look, verdict), job=name or None,
        partition=current.partition if current else None, nodes=nodes or None, restarts=verdict.restarts,
        start=current.start if current and current.waiting else None, left=current.left if current and current.active else None,
    )  # fmt: skip


def _progress(look: Glance) -> tuple[int, int, float | None]:
    """Step, samples and samples a second of a run that trains; the ranks' own files are newer than the record."""
    starts = [e for e in events(look.rundir.attempts, 4096) if e.get("event") == "start"]
    began = number(starts[-1].get("time")) if starts else None
    beats = [int(step) for facts in ranks(look.rundir) if (step := number(facts.get("step"))) is not None]
    step, samples = look.step, look.samples
    if step and max(beats, default=0) > step:
        samples = samples * max(beats) // step
        step = max(beats)
    return step, samples, rate(look, began or 0.0)


def _host(look: Glance, verdict: Verdict) -> str | None:
    return look.holder.host if look.holder is not None and verdict.state in ("running", "stopping", "suspended") else None


def last_checkpoint(rundir: RunDir) -> int | None:
    """The step of the newest committed checkpoint."""
    steps = [int(m[1]) for f in rundir.checkpoints.glob("step-*") if (m := _CHECKPOINT.fullmatch(f.name)) and f.is_dir()]
    return max(steps, default=None)


def choose(found: list[Status], *, sort: str = "", states: str = "", last: int | None = None) -> list[Status]:
    """Some runs, in an order: `best` (best first, each metric by itself), `when` (latest last), `name`, or `state`.

    `states` keeps those in one of the states named with commas, `last` the latest so many. Raises UserError.
    """
    wanted = [word.strip() for word in states.split(",") if word.strip()]
    for word in wanted:
        if word not in ORDER:
            raise UserError(f"--state {word}: no run is ever in that state{nearest(word, ORDER)}")
    kept = sorted((run for run in found if not wanted or run.state in wanted), key=lambda run: run.at)
    kept = kept[-last:] if last else kept
    keys: dict[str, Callable[[Status], Any]] = {
        "": lambda run: run.at, "when": lambda run: run.at, "name": lambda run: _natural(run.name),
        "state": lambda run: (ORDER.index(run.state), -run.at), "best": _rank,
    }  # fmt: skip
    if sort not in keys:
        raise UserError(f"--sort {sort}: there is no such order{nearest(sort, [key for key in keys if key])}")
    return sorted(kept, key=keys[sort])


def _rank(run: Status) -> tuple[Any, ...]:
    if run.best is None or run.best_metric is None:
        return (1, "", 0.0, -run.at)
    return (0, run.best_metric, run.best if lower_is_better(run.best_metric) else -run.best, run.at)


def _natural(name: str) -> list[Any]:
    """member-2 before member-10."""
    return [(1, int(part), "") if part.isdigit() else (0, 0, part) for part in re.split(r"([0-9]+)", name)]


def duration(seconds: float) -> str:
    """`45 s`, `12 min`, `3 h 05`, `2 d 4 h`."""
    whole = round(seconds)
    if whole < 100:
        return f"{whole} s"
    minutes = round(seconds / 60)
    if minutes < 100:
        return f"{minutes} min"
    hours, rest = divmod(minutes, 60)
    return f"{hours} h {rest:02d}" if hours < 48 else f"{hours // 24} d {hours % 24} h"


def moment(at: float, now: float | None = None) -> str:
    """A time of day, with its date where that is another."""
    today = time.strftime("%Y-%m-%d", time.localtime(now))
    date = time.strftime("%Y-%m-%d", time.localtime(at))
    return time.strftime("%H:%M", time.localtime(at)) if date == today else time.strftime("%Y-%m-%d %H:%M", time.localtime(at))
