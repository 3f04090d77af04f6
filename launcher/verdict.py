"""In which state a run is: what its folder shows and what Slurm says, put together. No file is written here, nothing is asked."""

from __future__ import annotations

import socket
import time
from dataclasses import dataclass
from typing import Any

from launcher.glance import Glance, events
from launcher.queue import Job
from trainer.rundir.lease import held_by

# In the order in which a table by state shows them.
GOES_ON = ("running", "starting", "stopping", "suspended", "pending")  # a process or Slurm has it in hand
ORDER = (*GOES_ON, "failed", "killed", "timeout", "stopped", "cancelled", "done", "new")

_BEAT_OLD = 120.0  # seconds; a lease is renewed every five
_SLACK = 5.0  # seconds by which the clocks of two machines may differ
_ENDS = {
    "TIMEOUT": ("timeout", "its job ran out of time before it was queued again"),
    "NODE_FAIL": ("failed", "a node of its job failed"),
    "BOOT_FAIL": ("failed", "a node of its job did not start"),
    "OUT_OF_MEMORY": ("failed", "its job took more memory than it had asked for"),
    "DEADLINE": ("timeout", "its job could not end before its deadline"),
    "PREEMPTED": ("stopped", "its job had to make room for another"),
}


@dataclass(frozen=True)
class Verdict:
    """A state, the reason for it in words, and how often its job was queued again."""

    state: str
    reason: str
    restarts: int = 0


def judge(look: Glance, job: Job | None, *, ended: str = "", problem: str = "") -> Verdict:
    """The state of a run.

    `job` is its Slurm job, if Slurm still knows it; `ended` how accounts say that it ended; `problem` why Slurm was not asked or
    did not answer, which makes an unknown job mean nothing.
    """
    here = look.holder is not None and look.holder.host == socket.gethostname()
    alive = here and held_by(look.rundir.lease) is not None
    name = str(look.job.get("id") or "")
    if not name:
        return _alone(look, alive=alive, here=here)
    past = events(look.rundir.jobs)
    restart = look.job.get("restart")
    restarts = restart if isinstance(restart, int) else 0
    begun = [e for e in past if e.get("event") == "begin" and str(e.get("job")) == name]
    ends = [e for e in past if e.get("event") == "end" and str(e.get("job")) == name]
    last_begin = _time(begun[-1]) if begun else None
    if job is not None and job.waiting:
        return Verdict("pending", job.why(), restarts + 1 if begun else 0)
    if job is not None and job.active:
        return Verdict(*_active(look, job, last_begin, alive=alive), restarts)
    # the job is over, or Slurm does not say
    fresh = not here and look.holder is not None and time.time() - look.beat < _BEAT_OLD
    if alive or (fresh and job is None):
        return Verdict("running", f"{_who(look)}; {problem or f'its job {name} is over'}", restarts)
    last_end = ends[-1] if ends and (last_begin is None or _time(ends[-1]) >= last_begin) else None
    if job is None and problem:
        return Verdict(*_unasked(look, name, problem, begun=last_begin, last_end=last_end), restarts)
    return Verdict(*_over(look, name, job.state if job else ended, begun=bool(begun), last_end=last_end), restarts)


def _alone(look: Glance, *, alive: bool, here: bool) -> Verdict:
    """A run that Slurm has nothing to do with: its own files alone."""
    if look.holder is not None and not here:
        age = time.time() - look.beat
        doubt = f"; but it gave no sign for {age / 60:.0f} minutes" if age > _BEAT_OLD else ""
        return Verdict("running", f"as its lease says: {_who(look)}{doubt}")
    if alive:
        return Verdict("running", _who(look))
    if look.marker is not None:
        return Verdict(*_marked(look))
    if look.holder is not None or look.recorded:
        return Verdict("killed", "its last attempt left no marker; the same command goes on from the last checkpoint")
    return Verdict("new", "not started yet")


def _marked(look: Glance) -> tuple[str, str]:
    assert look.marker is not None
    state = {"DONE": "done", "REQUEUE": "stopped", "FAILED": "failed"}[look.marker.state]
    return state, look.marker.reason if state != "failed" else failure(look) + look.marker.reason


def _active(look: Glance, job: Job, begun: float | None, *, alive: bool) -> tuple[str, str]:
    """A job that holds nodes."""
    if job.state == "SUSPENDED":
        return "suspended", "Slurm holds its processes for another job"
    if job.state == "CONFIGURING":
        return "starting", f"its nodes are being made ready: {job.nodes}"
    since = max(begun or 0.0, job.start or 0.0) - _SLACK  # what is older is of an earlier start
    now_marked = look.marker is not None and look.marker.time >= since
    if look.marker is not None and look.marker.state == "DONE":
        return "done", look.marker.reason
    if job.state != "RUNNING":
        return "stopping", f"its job is ending ({job.state.lower()})"
    if alive or (look.holder is not None and look.beat >= since):
        return "running", _who(look)
    if look.marker is not None and now_marked:
        return "stopping", f"{look.marker.reason}; its job is about to end"
    return "starting", f"its job runs on {job.nodes}; no rank has started yet"


def _over(look: Glance, name: str, state: str, *, begun: bool, last_end: dict[str, Any] | None) -> tuple[str, str]:
    """A job that has ended, as Slurm says with `state` (empty: it no longer knows)."""
    marker = look.marker
    if marker is not None and marker.state == "DONE":
        return "done", marker.reason
    ours = last_end or {}
    if marker is not None and ours and marker.time > _time(ours) + _SLACK:
        return _marked(look)  # somebody went on with it here, after the job
    verdict = str(ours.get("verdict", ""))
    said = str(ours.get("reason", "")) if verdict != "requeue" else ""
    saved = f"{marker.reason}; " if marker is not None else ""
    if state in _ENDS:
        ends_as, words = _ENDS[state]
        return ends_as, saved + words
    if state == "CANCELLED":
        return "cancelled", f"{saved}job {name} was cancelled" + ("" if begun else " before it started")
    if verdict == "cancelled":
        return "cancelled", said
    if marker is not None and marker.state == "FAILED":
        return _marked(look)
    if verdict == "requeue":
        return ("stopped" if marker else "killed"), f"{saved}job {name} was queued again, and is gone from the queue since"
    if marker is not None:
        return "stopped", said or f"{saved}job {name} was not queued again"
    if verdict == "stop" or state == "FAILED":
        return "failed", said or f"{failure(look)}job {name} failed; graft logs {look.rundir.name} --job shows what it said"
    if begun or look.recorded or look.holder is not None:
        return "killed", f"{failure(look)}job {name} is gone and its last attempt left no marker"
    return "killed", f"job {name} is gone and left nothing; graft logs {look.rundir.name} --job may show why"


def _unasked(look: Glance, name: str, problem: str, *, begun: float | None, last_end: dict[str, Any] | None) -> tuple[str, str]:
    """The folder alone; what Slurm does not say stays open."""
    marker = look.marker
    if marker is not None and marker.state == "DONE":
        return "done", marker.reason
    verdict = (last_end or {}).get("verdict")
    if verdict == "requeue":
        return "pending", f"queued again, as its folder says; {problem}"
    if marker is not None and marker.state == "FAILED":
        return _marked(look)
    if verdict in ("stop", "cancelled"):
        state = "cancelled" if verdict == "cancelled" else "stopped" if marker is not None else "failed"
        return state, str((last_end or {}).get("reason", ""))
    if marker is not None:
        return "stopped", f"{marker.reason}; whether job {name} waits is not known: {problem}"
    if begun is not None and time.time() - begun < _BEAT_OLD:
        return "starting", f"job {name} has begun, as its folder says; {problem}"
    if begun is not None:
        return "killed", f"its last attempt gave no sign for {max(0.0, time.time() - look.at) / 60:.0f} minutes; {problem}"
    return "pending", f"as of its submission (job {name}); {problem}"


def failure(look: Glance) -> str:
    """`rank 3 on node2: ` where the launcher noted which rank failed first, else nothing."""
    logs = look.rundir.logs
    for file in [*sorted(logs.glob("failure-*.json")), logs / "failure.json"]:
        noted = look.rundir.read_json(file)
        if isinstance(noted.get("rank"), int) and noted.get("code"):
            where = f" on {noted['node']}" if noted.get("node") else ""
            named = look.marker is not None and f"rank {noted['rank']}" in look.marker.reason
            return "" if named else f"rank {noted['rank']}{where}: "
    return ""


def _who(look: Glance) -> str:
    """Who trains, without the command, which is long."""
    holder = look.holder
    return f"process {holder.pid} on {holder.host} since {holder.since}" if holder is not None else ""


def _time(event: dict[str, Any]) -> float:
    value = event.get("time")
    return float(value) if isinstance(value, (int, float)) else 0.0
