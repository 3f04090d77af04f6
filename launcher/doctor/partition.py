"""The partition that jobs go to: whether it is there, has the nodes that are asked for, and takes a job like ours."""

from __future__ import annotations

import os
import re
import shutil
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass

from launcher import slurm
from launcher.cluster import Cluster
from launcher.doctor.check import Check, failed, ok, unchecked, warning
from trainer.config import RefusedError, nearest

_GRES = re.compile(r"gpu(?::([A-Za-z][\w.-]*))?:(\d+)")
_UNUSABLE = re.compile(r"DOWN|DRAIN|FAIL|MAINT|NOT_RESPONDING|POWERED_DOWN|UNKNOWN|\*$", re.IGNORECASE)


@dataclass(frozen=True)
class Node:
    """A node of the partition. `gpus` maps types (empty where Slurm is not told) to counts."""

    name: str
    state: str
    gpus: dict[str, int]
    features: frozenset[str]
    reason: str

    @property
    def usable(self) -> bool:
        return not _UNUSABLE.search(self.state)

    def fits(self, cluster: Cluster) -> bool:
        """Whether it has the GPUs and the feature that the cluster file asks for."""
        kind = cluster.gpu_type
        count = sum(n for name, n in self.gpus.items() if kind is None or name == kind)
        return count >= (cluster.gpus_per_node or 0) and (cluster.constraint is None or cluster.constraint in self.features)


def partitions() -> dict[str, dict[str, str]]:
    """The partitions by name, each with what `scontrol show partition` says of it."""
    found = [_pairs(line) for line in slurm.command("scontrol", "show", "partition", "-o").splitlines() if line.strip()]
    return {each["PartitionName"]: each for each in found if "PartitionName" in each}


def nodes(partition: str) -> list[Node]:
    """The nodes of a partition."""
    found = []
    for line in slurm.command("scontrol", "show", "node", "-o").splitlines():
        said = _pairs(line)
        if partition in said.get("Partitions", "").split(","):
            gpus: Counter[str] = Counter()
            for kind, count in _GRES.findall(said.get("Gres", "")):
                gpus[kind] += int(count)
            reason = re.search(r" Reason=(.*?)(?: \[\S+\])?(?: Comment=.*)?$", line)
            features = frozenset(said.get("ActiveFeatures", "").split(","))
            found.append(Node(said["NodeName"], said.get("State", "UNKNOWN"), dict(gpus), features, reason[1] if reason else ""))
    return found


def chosen(cluster: Cluster, known: dict[str, dict[str, str]]) -> str | None:
    """The partition that a job of this cluster goes to."""
    default = next((name for name, said in known.items() if said.get("Default") == "YES"), None)
    return cluster.partition or default


def check_partition(cluster: Cluster, known: dict[str, dict[str, str]], config: dict[str, str]) -> Iterator[Check]:
    """Whether it exists, is up, and gives as much time as is asked for; how its jobs are preempted."""
    name = chosen(cluster, known)
    if name is None or name.split(",")[0] not in known:
        yield failed(
            "partition", f"{name} does not exist" if name else "none is named and Slurm has no default",
            f"Set `partition` in the cluster file{nearest(name or '', known) or '; `sinfo -s` lists them'}.",
        )  # fmt: skip
        return
    said = known[name.split(",")[0]]
    if said.get("State") != "UP":
        yield failed("partition", f"{name} is {said.get('State', '?')}", "Choose another partition, or ask when it comes back.")
    else:
        yield ok("partition", f"{name} is up, {said.get('TotalNodes', '?')} nodes")
    yield _time(cluster, name, said)
    yield _preemption(name, said, config)


def _time(cluster: Cluster, name: str, said: dict[str, str]) -> Check:
    most = said.get("MaxTime", "UNLIMITED")
    if cluster.time is None:
        default = said.get("DefaultTime", "NONE")
        shown = most if default in ("NONE", "(null)") else default
        return ok("time limit", f"not said: a job may take {shown} (the longest here is {most})")
    limit, wanted = seconds(most), seconds(cluster.time)
    if limit is not None and wanted is not None and wanted > limit:
        return failed(
            "time limit", f"{cluster.time} is asked for, {name} gives {most} at most",
            f'Set time: "{most}" in the cluster file: a run that takes longer goes on in the next job.',
        )  # fmt: skip
    return ok("time limit", f"{cluster.time} of {most} at most")


def _preemption(name: str, said: dict[str, str], config: dict[str, str]) -> Check:
    mode, grace = said.get("PreemptMode", "OFF"), said.get("GraceTime", "0")
    if config.get("PreemptType", "preempt/none").endswith("/none") or mode == "OFF":
        return ok("preemption", f"jobs of {name} are not preempted")
    if mode == "SUSPEND" or mode.startswith("GANG"):
        return ok("preemption", f"jobs of {name} may be suspended and go on later")
    if grace == "0":
        after = "and queued again by Slurm" if mode == "REQUEUE" else "and not queued again"
        advice = "Set checkpoint.every to what may be lost"
        return warning(
            "preemption", f"jobs of {name} are killed without warning (GraceTime=0) {after}",
            f"{advice}." if mode == "REQUEUE" else f"{advice}, and use graft resume after a preemption.",
        )  # fmt: skip
    return ok("preemption", f"jobs of {name} have {grace} s to save ({mode}), then go on in the queue")


def check_nodes(cluster: Cluster, partition: str, found: list[Node]) -> Iterator[Check]:
    """Whether there are nodes with what is asked for, and whether they take jobs."""
    wanted = f"{cluster.gpus_per_node or 0} GPU{'' if cluster.gpus_per_node == 1 else 's'}"
    wanted += f" of type {cluster.gpu_type}" if cluster.gpu_type else ""
    wanted += f" and feature {cluster.constraint}" if cluster.constraint else ""
    fitting = [node for node in found if node.fits(cluster)]
    if not fitting:
        there = sorted({" + ".join(f"{n} {kind or 'gpu'}" for kind, n in node.gpus.items()) or "no GPU" for node in found})
        yield failed(
            "nodes", f"no node of {partition} has {wanted}; its nodes have {', '.join(there) or 'nothing'}",
            "Correct gpus_per_node, gpu_type, constraint or partition in the cluster file (`sinfo -o '%N %G %f'`).",
        )  # fmt: skip
        return
    usable = [node for node in fitting if node.usable]
    text = f"{len(usable)} of {len(fitting)} nodes of {partition} with {wanted} take jobs"
    away = [
        f"{node.name} is {node.state.lower()}" + (f" ({node.reason})" if node.reason else "")
        for node in fitting
        if not node.usable
    ]
    if not usable:
        yield failed(
            "nodes",
            f"{text}: {'; '.join(away[:4])}",
            "Wait until nodes come back, ask the administrators, or use another partition.",
        )
    elif len(usable) == 1 and len(fitting) > 1:
        yield warning(
            "nodes", f"{text}: {'; '.join(away[:4])}", "Runs on two nodes wait until one comes back: ask the administrators."
        )
    else:
        yield ok("nodes", text + (f"; {'; '.join(away[:4])}" if away else ""))


def check_permission(cluster: Cluster, arguments: list[str], config: dict[str, str]) -> Iterator[Check]:
    """Whether Slurm would take a job with this account, QOS and these options."""
    try:
        slurm.command("sbatch", "--test-only", *arguments, "--wrap=true")
    except RefusedError as error:
        said = str(error).partition("refused: ")[2].splitlines()
        yield failed(
            "a job like ours", "; ".join(dict.fromkeys(line.removeprefix("sbatch: error: ") for line in said)),
            "Correct account, qos, partition or options in the cluster file (`sacctmgr show assoc user=$USER` lists yours).",
        )  # fmt: skip
        return
    yield ok("a job like ours", "Slurm would take it (sbatch --test-only)")
    enforced = config.get("AccountingStorageEnforce", "none")
    named = [f"{key} {value}" for key, value in (("account", cluster.account), ("qos", cluster.qos)) if value]
    if not named:
        return
    if "associations" not in enforced:
        yield unchecked("account", f"Slurm here does not check accounts ({' and '.join(named)})")
    elif shutil.which("sacctmgr"):
        words = ["show", "assoc", f"user={os.environ.get('USER', '')}", "format=account,qos"]
        said = slurm.command("sacctmgr", "--noheader", "--parsable2", *words).split()
        own = sorted({line.partition("|")[0] for line in said})
        yield ok("account", f"{' and '.join(named)}; yours: {', '.join(own)}")


def seconds(text: str) -> int | None:
    """Seconds of a time of Slurm's such as 1-00:00:00, 04:00:00, 30:00 or 30 (minutes); none for UNLIMITED."""
    found = re.fullmatch(r"(?:(\d+)-)?(\d+)(?::(\d+))?(?::(\d+))?", text.strip())
    if found is None:
        return None
    days, *rest = found.groups()
    first, second, third = (int(part) if part is not None else None for part in rest)
    assert first is not None
    if days is not None:
        return ((int(days) * 24 + first) * 60 + (second or 0)) * 60 + (third or 0)
    if third is not None:
        return (first * 60 + (second or 0)) * 60 + third
    return first * 60 + (second or 0)


def _pairs(line: str) -> dict[str, str]:
    """`A=1 B=x` as a mapping; what has no = belongs to no value that is needed here."""
    return {key: value for key, mark, value in (word.partition("=") for word in line.split()) if mark}
