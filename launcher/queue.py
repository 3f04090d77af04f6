"""What Slurm knows of the jobs of this user: one squeue call for all of them, however many runs there are."""

from __future__ import annotations

import os
import re
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from launcher import slurm
from trainer.config import GraftError

_PATIENCE = 15.0  # seconds; squeue itself gives a controller that is down up after nine
# The reason may hold anything but a line break, so it comes last; the job's name, which may hold even that, is not asked for.
_FORMAT = "%i|%T|%P|%L|%S|%N|%r"
_FIELDS = 7
_ID = re.compile(r"(\d+)(?:_(?:(\d+)|\[([^\]]*)\]))?")
_MEMBERS = re.compile(r"(\d+)(?:-(\d+)(?::(\d+))?)?")
_TIME = re.compile(r"(?:(\d+)-)?(?:(?:(\d+):)?(\d+):)?(\d+)")

WAITING = {"PENDING", "REQUEUED", "REQUEUE_FED", "REQUEUE_HOLD", "SPECIAL_EXIT", "RESV_DEL_HOLD"}
ACTIVE = {"RUNNING", "CONFIGURING", "COMPLETING", "STAGE_OUT", "SIGNALING", "SUSPENDED", "STOPPED", "RESIZING"}

_WORDS = {
    "Resources": "waits for nodes that are busy",
    "Priority": "jobs with a higher priority come first",
    "Dependency": "waits for another job to end",
    "DependencyNeverSatisfied": "the job that it waits for failed: it will never start; cancel it",
    "BeginTime": "its time has not come yet (after a requeue that is normal, for some minutes)",
    "JobHeldUser": "held by its user: scontrol release {id}",
    "JobHeldAdmin": "held by an administrator",
    "JobArrayTaskLimit": "as many members of the sweep run as may run at once",
    "JobRequeued": "was just queued again",
    "launch failed requeued held": "could not be started on its nodes and is held: scontrol release {id}",
    "Cleaning": "its last start is still being cleared away",
    "Prolog": "the nodes are being prepared",
    "None": "not looked at by the scheduler yet",
    "ReqNodeNotAvail": "nodes that it needs are down, drained or reserved",
    "Nodes required for job are DOWN, DRAINED or reserved for jobs in higher priority partitions":
        "nodes that it needs are down, drained or reserved",
    "NodeDown": "a node that it needs is down",
    "BadConstraints": "no node has what it asks for: correct its resources, cancel and submit it again",
    "PartitionDown": "its partition is closed for new jobs",
    "PartitionInactive": "its partition is out of service",
    "PartitionNodeLimit": "its partition gives no job so many nodes",
    "PartitionTimeLimit": "its partition gives no job so much time: lower resources.time",
    "Reservation": "waits for its reservation",
    "Licenses": "waits for a licence",
    "InvalidAccount": "its account is not known: correct resources.account",
    "InvalidQOS": "its QOS is not known",
    "AccountNotAllowed": "its account may not use this partition",
    "QOSNotAllowed": "its QOS may not be used here",
}  # fmt: skip
# QOSMaxJobsPerUserLimit, AssocGrpGRESMinutes, MaxNodePerAccount … : whose limit, and of what
_LIMIT = re.compile(r"(QOS|Assoc|User)(Grp|Max|Min|UsageThreshold|Resource|Job)?\w*")
_WHOSE = {"QOS": "a limit of its QOS", "Assoc": "a limit of your account", "User": "a limit for each user"}


@dataclass(frozen=True)
class Job:
    """A job, or one member of an array, as Slurm sees it now.

    `left` are the seconds to its time limit; `start` is when it started or is expected to (seconds since 1970).
    """

    id: str
    state: str
    partition: str = ""
    left: int | None = None
    start: float | None = None
    nodes: str = ""
    reason: str = ""

    @property
    def waiting(self) -> bool:
        return self.state in WAITING

    @property
    def active(self) -> bool:
        """Whether it holds nodes."""
        return self.state in ACTIVE

    def why(self) -> str:
        """Why it waits, in words, with Slurm's own word behind them."""
        name = self.reason.strip("()").partition(",")[0].strip()
        words = _WORDS.get(self.reason) or _WORDS.get(name)
        if words is None:
            limit = _LIMIT.fullmatch(name)
            words = f"{_WHOSE[limit[1]]} is reached" if limit else ""
        if not words:
            return self.reason or "no reason given"
        return words.format(id=self.id) + (f" ({self.reason})" if self.reason not in ("", "None") else "")


def parse(text: str) -> dict[str, Job]:
    """What squeue printed in our format, by job id; arrays that wait stand there member by member."""
    found: dict[str, Job] = {}
    for line in text.splitlines():
        fields = line.split("|", _FIELDS - 1)
        if len(fields) < _FIELDS:
            continue
        ids, state, partition, left, start, nodes, reason = fields
        job = Job("", state, partition, seconds(left), float(start) if start.isdigit() else None, nodes, _plain(reason))
        for one in expand(ids):
            found[one] = Job(one, job.state, job.partition, job.left, job.start, job.nodes, job.reason)
    return found


def expand(ids: str) -> Iterator[str]:
    """`120` and `120_3` as they are, `120_[0,4-8:2%2]` as 120_0, 120_4, 120_6, 120_8. What is no job id gives nothing."""
    whole = _ID.fullmatch(ids)
    if whole is None:
        return
    if whole[3] is None:
        yield ids
        return
    for part in whole[3].partition("%")[0].split(","):
        if span := _MEMBERS.fullmatch(part):
            for member in range(int(span[1]), int(span[2] or span[1]) + 1, int(span[3] or 1) or 1):
                yield f"{whole[1]}_{member}"


def seconds(text: str) -> int | None:
    """Slurm's `1-02:03:04`, `2:03:04`, `3:04` in seconds; none for UNLIMITED, INVALID, N/A."""
    found = _TIME.fullmatch(text.strip())
    if found is None:
        return None
    days, hours, minutes, rest = (int(part or 0) for part in found.groups())
    return ((days * 24 + hours) * 60 + minutes) * 60 + rest


class Queue:
    """The queue as of the last look; `look` asks again once that is `every` seconds old.

    `problem` says why there is no answer: then `jobs` is what was known before, and a job that is missing means nothing.
    """

    def __init__(self, every: float = 0.0) -> None:
        self.jobs: dict[str, Job] = {}
        self.problem = ""
        self.asked = 0
        self._every = every
        self._last = float("-inf")
        self._ended: dict[str, str] = {}

    def look(self) -> None:
        """Ask Slurm for all jobs of this user, those that ended lately too; one call, and raises nothing."""
        now = time.monotonic()
        if now - self._last < self._every:
            return
        self.asked += 1
        try:
            # -t all: for some minutes (MinJobAge) Slurm knows how a job ended, whether or not the site keeps accounts
            text = slurm.command(
                "squeue", "--noheader", "--array", "--states=all", f"--user={os.getuid()}", f"--format={_FORMAT}",
                timeout=_PATIENCE, environment=_environment(),
            )  # fmt: skip
        except GraftError as error:
            self.problem = " ".join(str(error).split())
        except UnicodeDecodeError:
            self.problem = "squeue printed what is no text"
        else:
            self.problem, self.jobs = "", parse(text)
        self._last = time.monotonic()

    def ended(self, ids: Sequence[str]) -> dict[str, str]:
        """How jobs that squeue no longer knows ended (COMPLETED, CANCELLED, TIMEOUT …), where the site keeps accounts."""
        unknown = [one for one in ids if one not in self._ended and _ID.fullmatch(one)]
        if unknown:
            self._ended |= dict.fromkeys(unknown, "")
            try:
                text = slurm.command(
                    "sacct", "--allocations", "--noheader", "--parsable2", "--format=JobID,State", f"--jobs={','.join(unknown)}",
                    timeout=_PATIENCE, environment=_environment(),
                )  # fmt: skip
            except (GraftError, UnicodeDecodeError):  # most often: there are no accounts here
                text = ""
            for line in text.splitlines():
                ids_, _, state = line.partition("|")
                for one in expand(ids_):
                    self._ended[one] = state.split()[0] if state.split() else ""
        return {one: self._ended[one] for one in ids if self._ended.get(one)}


def _environment() -> dict[str, str]:
    """The user's own settings of these commands would change what they print; times come as seconds since 1970."""
    kept = {k: v for k, v in os.environ.items() if not k.startswith(("SQUEUE_", "SACCT_")) and k != "SLURM_CLUSTERS"}
    return {**kept, "SLURM_TIME_FORMAT": "%s"}


def _plain(text: str) -> str:
    return "".join(c if c.isprintable() else " " for c in text).strip()
