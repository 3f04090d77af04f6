"""Everything about one run, for `graft status`."""

from __future__ import annotations

import shlex
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from launcher import table
from launcher.glance import Glance, events, number, ranks
from launcher.queue import Queue
from launcher.runs import Status, duration, examine, last_checkpoint, moment
from launcher.verdict import GOES_ON
from trainer.rundir import RunDir, Sizes, read_sizes
from trainer.rundir.metric import few

_SHOWN = 8  # attempts, ranks, stragglers: the latest
_TRAINS = ("running", "stopping", "suspended")
_REASON = 200  # characters of why an attempt ended; its log has the rest
_QUIET = 10.0  # seconds; a rank shows every second that it lives


@dataclass(frozen=True)
class Detail:
    """A run with its ranks, attempts and evaluations; `next` are the commands that make sense now, each with its purpose."""

    status: Status
    evaluation: dict[str, Any]
    best_step: int | None
    checkpoint: int | None
    ranks: list[dict[str, Any]]
    attempts: list[dict[str, Any]]
    stragglers: list[dict[str, Any]]
    bad_nodes: list[dict[str, Any]]
    summary: dict[str, Any]
    sizes: Sizes | None
    problem: str
    speed: dict[str, float]
    next: list[tuple[str, str]]

    def as_json(self) -> dict[str, Any]:
        return {
            **self.status.as_json(), "checkpoint": self.checkpoint, "best_step": self.best_step, "evaluation": self.evaluation,
            "ranks": self.ranks, "attempts": self.attempts, "stragglers": self.stragglers, "bad_nodes": self.bad_nodes,
            "ettr": self.summary.get("ettr"), "sizes": self.sizes.told() if self.sizes else None, "problem": self.problem,
            "speed": self.speed,
            "next": [command for command, _ in self.next],
        }  # fmt: skip

    def text(self) -> str:
        """As people read it; the state is coloured on a terminal."""
        run = self.status
        state = f"\x1b[{table.COLOURS[run.state]}m{run.state}\x1b[0m" if table.coloured(sys.stdout) else run.state
        rows = [("run", table.plain(f"{run.name}, in {run.folder}")), ("state", f"{state}: {table.plain(run.reason)}")]
        rows += [("job", _job(run))] if run.job else []
        rows += [("progress", _progress(run))]
        rows += [("speed", said)] if (said := _speed(self.speed)) else []
        rows += [("loss", f"{run.loss:.4g}")] if run.loss is not None else []
        at = f" at step {self.best_step:,}" if self.best_step is not None else ""
        rows += [("best", table.best(run) + at)] if run.best is not None else []
        if self.evaluation:
            measured = {k[4:]: number(v) for k, v in self.evaluation.items() if k in few(self.evaluation)}
            values = ", ".join(f"{name} {value:.4f}" for name, value in measured.items() if value is not None)
            rows.append(("evaluated", table.plain(f"step {self.evaluation.get('step')}: {values}")))
        rows.append(("checkpoint", "none yet" if self.checkpoint is None else f"step {self.checkpoint:,}"))
        rows += [("samples", table.plain(self.sizes.words()))] if self.sizes is not None else []
        rows += _list("rank", [_rank(facts) for facts in self.ranks])
        rows += _list("slow", [_straggler(event) for event in self.stragglers])
        rows += _list("bad node", [f"{e.get('node')}: {e.get('problem')}" for e in self.bad_nodes])
        rows += _list("attempt", [_attempt(a, running=run.state in GOES_ON and a is self.attempts[-1]) for a in self.attempts])
        ettr = number(self.summary.get("ettr"))
        rows += [("productive", f"{ettr:.0%} of the time since its first start")] if ettr is not None else []
        width = max(len(command) for command, _ in self.next)
        rows += _list("next", [f"{command:{width}}  {why}" for command, why in self.next], limit=None)
        if self.problem:
            rows.append(("Slurm", f"{self.problem}; what is shown is what the run folder says"))
        return "\n".join(f"{label:<10}  {text}".rstrip() for label, text in rows)


def detail(rundir: RunDir) -> Detail:
    """Look at a run: its folder, and the queue if it was given to Slurm."""
    queue = Queue()
    look, status = examine([rundir], queue)[0]
    summary = rundir.read_json(rundir.summary)
    best = summary.get("best")
    best_step = _whole(best.get("step")) if isinstance(best, dict) else None
    history = events(rundir.attempts)
    checkpoint = last_checkpoint(rundir)
    return Detail(
        status=status, evaluation=_evaluation(look, summary), best_step=best_step, checkpoint=checkpoint,
        ranks=ranks(rundir) if status.state in _TRAINS else [], attempts=_attempts(history),
        stragglers=[e for e in history if e.get("event") == "straggler"], bad_nodes=events(rundir.bad_nodes), summary=summary,
        sizes=read_sizes(rundir), problem=queue.problem, speed=_figures(look, summary, trains=status.state in _TRAINS),
        next=_next(status, rundir, checkpoint),
    )  # fmt: skip


def _evaluation(look: Glance, summary: dict[str, Any]) -> dict[str, Any]:
    """The newest point with a measurement of the validation data."""
    for point in reversed(look.points):
        if any(key.startswith("val/") for key in point):
            return dict(point)
    final = summary.get("final")
    return {"step": summary.get("step"), **final} if isinstance(final, dict) and final else {}


def _figures(look: Glance, summary: dict[str, Any], *, trains: bool) -> dict[str, float]:
    """Of the newest point while it trains, else of the whole of the last attempt: samples a second within steps, and so on."""
    timed = (p for p in reversed(look.points) if trains and "speed/samples_per_second" in p)
    point: dict[str, Any] = next(timed, {})
    found = {key.removeprefix("speed/"): value for key, value in point.items() if key.startswith("speed/")}
    known = summary.get("speed")
    if not found and isinstance(known, dict):
        found = {key: known.get(key) for key in ("samples_per_second", "data_wait", "mfu")}
    return {key: number(value) or 0.0 for key, value in found.items() if number(value) is not None}


def _speed(found: dict[str, float]) -> str:
    parts = [f"{found['samples_per_second']:,.4g} samples/s within steps"] if "samples_per_second" in found else []
    parts += [f"MFU {found['mfu']:.1%}"] if "mfu" in found else []
    parts += [f"{found['data_wait']:.1%} of it waiting for data"] if "data_wait" in found else []
    parts += [f"{found['gpu_hours_left']:,.3g} GPU-hours left"] if "gpu_hours_left" in found else []
    return ", ".join(parts)


def _attempts(history: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Each attempt with its start and its end in one; without an end there is no `state`."""
    found: dict[int, dict[str, Any]] = {}
    for event in history:
        attempt = _whole(event.get("attempt"))
        if attempt is None:
            continue
        if event.get("event") == "start":
            found[attempt] = {"attempt": attempt, **{k: event.get(k) for k in ("time", "host", "world", "step")}}
        elif event.get("event") == "end":
            end = {"ended": event.get("time"), "end_step": event.get("step"), **{k: event.get(k) for k in ("state", "reason")}}
            found[attempt] = {**found.get(attempt, {"attempt": attempt}), **end}
    return [found[attempt] for attempt in sorted(found)]


def _next(run: Status, rundir: RunDir, checkpoint: int | None) -> list[tuple[str, str]]:
    name = address(rundir)
    goes_on = f"goes on from step {checkpoint:,}" if checkpoint is not None else "starts again from the beginning"
    resume = (f"graft resume {name}", f"{goes_on}{', as a new job' if run.job else ''}")
    match run.state:
        case "new":
            return [(f"graft train {name}", "trains it here"), (f"graft submit {name}", "gives it to Slurm")]
        case "pending":
            return [
                (f"graft logs {name} -f", "waits for it, shows its log"),
                (f"graft cancel {name}", "takes it out of the queue"),
            ]
        case "done":
            return [(f"graft report {name}", "a page of curves"), (f"graft predict {name} FILES", "what is in pictures")]
        case "failed" | "killed":
            job = [(f"graft logs {name} --job", "what the Slurm job wrote")] if run.job else []
            return [(f"graft logs {name}", "what it said last"), *job, resume]
        case "stopped" | "cancelled" | "timeout":
            return [resume]
        case _:
            return [(f"graft logs {name} -f", "follows its log"), (f"graft cancel {name}", "saves, then stops it")]


def address(rundir: RunDir) -> str:
    """How a command names this run: by its name where the default folder holds it, else by its path."""
    if rundir.path.parent == Path("runs").resolve():
        return shlex.quote(rundir.name)
    here = Path.cwd()
    path = rundir.path.relative_to(here) if rundir.path.is_relative_to(here) else rundir.path
    return shlex.quote(str(path))


def _job(run: Status) -> str:
    parts = [f"{run.job}"]
    parts += [f"partition {run.partition}"] if run.partition else []
    parts += [f"on {run.nodes}"] if run.nodes else []
    parts += [f"queued again {run.restarts} time{'s' if run.restarts > 1 else ''}"] if run.restarts else []
    parts += [f"expected to start {moment(run.start)}"] if run.start else []
    parts += [f"{duration(run.left)} to its time limit"] if run.left is not None else []
    return table.plain(", ".join(parts))


def _progress(run: Status) -> str:
    if not run.samples and not run.step:
        return "no step yet"
    total = f" of {run.total_samples:,}" if run.total_samples else ""
    share = f" ({run.share:.1%})" if run.share is not None else ""
    text = f"step {run.step:,}, {run.samples:,}{total} samples{share}"
    if run.rate:
        text += f", {run.rate:,.4g} samples/s" + (f", {duration(run.eta)} left" if run.eta is not None else "")
    return text


def _rank(facts: dict[str, Any]) -> str:
    age = number(facts.get("age")) or 0.0
    sign = "" if age < _QUIET else f", no sign of life for {duration(age)}"
    where = facts.get("node") or facts.get("host")
    return f"{facts['rank']} on {where}, process {facts.get('pid')}, step {facts.get('step', 0)}{sign}"


def _straggler(event: dict[str, Any]) -> str:
    where = event.get("node") or event.get("host")
    who = f"rank {event.get('rank')}{f' on {where}' if where else ''}"
    seconds, median = number(event.get("seconds")), number(event.get("median"))
    if seconds and median:
        return f"{who}: {seconds:.3g} s a step, {seconds / median:.1f} times its peers, at step {event.get('step')}"
    shown = {k: v for k, v in event.items() if k not in ("event", "attempt", "time", "rank", "host", "node")}
    facts = ", ".join(f"{key} {value:.4g}" if isinstance(value, float) else f"{key} {value}" for key, value in shown.items())
    return f"{who}: {facts}"


def _attempt(attempt: dict[str, Any], *, running: bool) -> str:
    began, ended = number(attempt.get("time")), number(attempt.get("ended"))
    text = f"{attempt['attempt']}"
    if began is not None:
        world = attempt.get("world")
        ranks_ = f"{world} rank{'s' if world != 1 else ''}"
        text += f"  {moment(began)}, {ranks_} on {attempt.get('host')}, from step {attempt.get('step')}"
    if attempt.get("state"):
        how = {"DONE": "done", "REQUEUE": "stopped", "FAILED": "failed"}.get(str(attempt["state"]), str(attempt["state"]))
        after = f" after {duration(ended - began)}" if began is not None and ended is not None else ""
        reason = f": {table.cut(str(attempt['reason']), _REASON)}" if attempt.get("reason") else ""
        return f"{text}: {how} at step {attempt.get('end_step')}{after}{reason}"
    return f"{text}: " + ("under way" if running else "ended without a word (killed, or its machine went down)")


def _list(label: str, lines: list[str], *, limit: int | None = _SHOWN) -> list[tuple[str, str]]:
    """Rows of which only the first has the label; the latest ones where there are many."""
    shown = lines if limit is None else lines[-limit:]
    texts = [f"… {len(lines) - len(shown)} more"] * (len(shown) < len(lines)) + [table.plain(line) for line in shown]
    return [(label if place == 0 else "", text) for place, text in enumerate(texts)]


def _whole(value: Any) -> int | None:
    return value if isinstance(value, int) and not isinstance(value, bool) else None
