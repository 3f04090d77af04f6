"""The job that looks at two nodes: its script, its bounded wait, and that nothing of it stays."""

from __future__ import annotations

import contextlib
import json
import re
import secrets
import shlex
import shutil
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import launcher.probe
from launcher import slurm
from launcher.cluster import Cluster
from launcher.probe.node import LONGEST as NODE_LONGEST
from launcher.probe.node import MARK
from launcher.request import container
from trainer.config import GraftError

LONGEST = "0:10:00"  # time limit of the job
_EXPORTED = "HOME,USER,LOGNAME,SHELL,LANG,PATH"  # as `graft submit`: Slurm stores the environment of a job, so no keys
_ENDED = {
    "COMPLETED", "FAILED", "CANCELLED", "TIMEOUT", "NODE_FAIL", "BOOT_FAIL", "OUT_OF_MEMORY", "PREEMPTED", "DEADLINE", "REVOKED",
}  # fmt: skip
MEET = 30.0  # seconds that a node waits for what the other wrote
_SHARED = 20.0  # seconds that a file server may take to show the login node what the nodes wrote
NOT_THERE = "it is not there"
NO_FOLDER, NO_SITE, NO_MODULE, NO_PYTHON = 91, 93, 94, 95

_SCRIPT = """\
#!/bin/bash
# Looks at the nodes for `graft doctor`. The exit code says what is missing, since nothing else can where the folder is not seen.
@settings@
if [[ ! -r $FOLDER/nonce || ! -w $FOLDER ]]; then exit 91; fi
exec >"$FOLDER/out" 2>"$FOLDER/err" || exit 91
if [[ -n $SITE ]]; then
  # shellcheck source=/dev/null
  source "$SITE" || exit 93
fi
for module in ${MODULES[@]+"${MODULES[@]}"}; do
  module load "$module" || { echo "module load $module failed" >&2; exit 94; }
done
for variable in ${ENVIRONMENT[@]+"${ENVIRONMENT[@]}"}; do export "${variable?}"; done
export SLURM_EXPORT_ENV=ALL OMP_NUM_THREADS=1
interpreter=(${CONTAINER[@]+"${CONTAINER[@]}"} "$PYTHON")
command -v "${interpreter[0]}" >/dev/null || { echo "${interpreter[0]} is not on $(hostname)" >&2; exit 95; }
address=''
if [[ -n $INTERFACE ]]; then
  address=$(ip -o -4 addr show dev "$INTERFACE" 2>/dev/null | awk '{sub("/.*", "", $4); print $4; exit}')
fi
first=${SLURMD_NODENAME:-$(hostname)}
if [[ -z $address ]]; then address=$(scontrol show node "$first" | sed -n 's/.*NodeAddr=\\([^ ]*\\).*/\\1/p' | head -n 1); fi
task=(--nodes="$NODES" --ntasks="$NODES" --ntasks-per-node=1)
if [[ -n ${SLURM_CPUS_PER_TASK-} ]]; then task+=(--cpus-per-task="$SLURM_CPUS_PER_TASK"); fi
missing=''
for name in scontrol squeue scancel; do command -v "$name" >/dev/null || missing+=" $name"; done
refused=$(scontrol show job "$SLURM_JOB_ID" 2>&1 >/dev/null) || refused=${refused:-refused}
exec srun "${task[@]}" ${SRUN[@]+"${SRUN[@]}"} "${interpreter[@]}" -c "$START" "$FOLDER" "$ASKED" "${address:-$first}" \\
  "${missing# }" "$refused"
"""

# What each node runs first; it needs nothing of ours, since the folder may not be there.
_START = """\
import json, os, socket, sys
folder, asked, address, missing, refused = sys.argv[1:]
if not os.path.isfile(folder + "/graft_probe/node.py"):
    fact = {"node": os.environ.get("SLURMD_NODENAME") or socket.gethostname(), "rank": int(os.environ["SLURM_NODEID"])}
    print(@mark@ + json.dumps({**fact, "fact": "folder", "error": @absent@}), flush=True)
    sys.exit()
sys.dont_write_bytecode = True
sys.path.insert(0, folder)
from graft_probe.node import main
main({**json.loads(asked), "folder": folder, "address": address, "missing": missing, "refused": refused})
"""


@dataclass
class Outcome:
    """What came of the job: facts by name and rank, or why there are none.

    `waits` is the pending reason of a job that did not start in time, `code` the exit code of the script, `answered` how many
    nodes' files the login node saw, `errors` the end of what the job said.
    """

    nodes: int
    names: dict[int, str] = field(default_factory=dict)
    facts: dict[str, dict[int, dict[str, Any]]] = field(default_factory=dict)
    waits: str = ""
    state: str = ""
    code: int = 0
    where: str = ""
    answered: int = 0
    errors: str = ""


def arguments(cluster: Cluster, nodes: int) -> list[str]:
    """What sbatch is given for a job of this cluster."""
    gpus = cluster.gpus_per_node or 0
    kind = f"{cluster.gpu_type}:" if cluster.gpu_type else ""
    cpus = (cluster.cpus_per_gpu or 0) * max(1, gpus)
    known = [
        ("partition", cluster.partition), ("account", cluster.account), ("qos", cluster.qos), ("constraint", cluster.constraint),
        ("nodes", str(nodes)), ("ntasks-per-node", "1"), ("gpus-per-node", f"{kind}{gpus}" if gpus else None),
        ("cpus-per-task", str(cpus) if cpus else None), ("mem", cluster.memory),
    ]  # fmt: skip
    return [f"--{name}={value}" for name, value in known if value is not None] + list(cluster.options)


def _python(cluster: Cluster) -> str:
    if cluster.python:
        return str(Path(cluster.python).expanduser())
    return "python3" if cluster.container else sys.executable


def _site(cluster: Cluster) -> str:
    return str(Path.cwd() / Path(cluster.site).expanduser()) if cluster.site else ""


def script(cluster: Cluster, folder: Path, nodes: int, nonce: str) -> str:
    """The text of the job."""
    before, srun = container(cluster, folder, gpus=cluster.gpus_per_node or 0)
    asked = {
        "nonce": nonce, "nodes": nodes, "gpus": cluster.gpus_per_node or 0, "interface": cluster.interface or "",
        "scratch": cluster.scratch or "", "network": cluster.network, "patience": MEET,
    }  # fmt: skip
    words = {
        "FOLDER": str(folder), "NODES": str(nodes), "SITE": _site(cluster), "PYTHON": _python(cluster),
        "INTERFACE": cluster.interface or "", "ASKED": json.dumps(asked),
        "START": _START.replace("@mark@", repr(MARK)).replace("@absent@", repr(NOT_THERE)),
    }  # fmt: skip
    lists = {
        "MODULES": list(cluster.modules), "ENVIRONMENT": [f"{name}={value}" for name, value in cluster.environment.items()],
        "CONTAINER": list(before), "SRUN": list(srun),
    }  # fmt: skip
    lines = [f"{name}={shlex.quote(value)}" for name, value in words.items()]
    lines += [f"{name}=({' '.join(shlex.quote(value) for value in values)})" for name, values in lists.items()]
    return _SCRIPT.replace("@settings@", "\n".join(lines))


@contextlib.contextmanager
def _folder(runs: Path) -> Iterator[Path]:
    """A folder below the run folders for the job, with the program of the nodes; gone afterwards."""
    folder = Path(tempfile.mkdtemp(prefix=".graft-doctor-", dir=runs)).resolve()
    try:
        sources = Path(launcher.probe.__path__[0])
        shutil.copytree(sources, folder / "graft_probe", ignore=shutil.ignore_patterns("__pycache__"))
        yield folder
    finally:
        for _ in range(20):  # a node may just be writing; NFS keeps files that are open under another name for a while
            shutil.rmtree(folder, ignore_errors=True)
            if not folder.exists():
                break
            time.sleep(0.25)


def look(cluster: Cluster, runs: Path, nodes: int, patience: float, watch: Callable[[str], None]) -> Outcome:
    """Run the job and gather what the nodes found. `watch` is told what is waited for, again and again.

    Waits at most `patience` seconds for the job to start. Raises GraftError when Slurm refuses it.
    """
    with _folder(runs) as folder:
        nonce = secrets.token_hex(8)
        (folder / "nonce").write_text(nonce)
        (folder / "job").write_text(script(cluster, folder, nodes, nonce))
        own = ["--job-name=graft-doctor", "--no-requeue", f"--time={_time(cluster)}", "--output=/dev/null", "--chdir=/"]
        job = ""
        try:
            job = slurm.submit(folder / "job", [*arguments(cluster, nodes), *own, f"--export={_EXPORTED}"])
            outcome = Outcome(nodes)
            _wait(job, outcome, patience, watch)
            if not outcome.waits:
                _gather(folder, nonce, outcome)
            return outcome
        finally:
            if job:
                _end(job)


def _time(cluster: Cluster) -> str:
    from launcher.doctor.partition import seconds

    wanted = seconds(cluster.time or LONGEST)
    return min((cluster.time or LONGEST, LONGEST), key=lambda t: seconds(t) or 0) if wanted else LONGEST


def _wait(job: str, outcome: Outcome, patience: float, watch: Callable[[str], None]) -> None:
    begun, pause, started = time.monotonic(), 0.3, 0.0
    while True:
        said = slurm.command("scontrol", "show", "job", job, "-o")
        state = _value(said, "JobState")
        waited = time.monotonic() - begun
        if state in _ENDED:
            outcome.state, outcome.where = state, _value(said, "BatchHost") or _value(said, "NodeList")
            outcome.code = int(_value(said, "ExitCode").partition(":")[0] or 0)
            return
        if state in ("PENDING", "CONFIGURING"):
            reason = _value(said, "Reason").replace("_", " ")
            watch(f"job {job} waits: {reason} ({waited:.0f} of {patience:.0f} s)")
            if waited > patience:
                outcome.waits = reason
                return
        else:
            started = started or time.monotonic()
            if time.monotonic() - started > NODE_LONGEST + _SHARED:
                outcome.state = "HUNG"
                return
            watch(f"job {job} looks at {_value(said, 'NodeList')}")
        time.sleep(pause)
        pause = min(pause * 1.3, 5.0)  # a controller of thousands of jobs is not asked in a hurry


def _value(said: str, key: str) -> str:
    found = re.search(rf"(?:^|\s){key}=(\S*)", said)
    return "" if found is None or found[1] in ("(null)", "None") else found[1]


def _gather(folder: Path, nonce: str, outcome: Outcome) -> None:
    """Read what the nodes printed and wrote; a file server may show it late."""
    until = time.monotonic() + _SHARED
    while outcome.code != NO_FOLDER:
        lines = _text(folder / "out").splitlines()
        found = [json.loads(line.partition(MARK)[2]) for line in lines if MARK in line and line.endswith("}")]
        done = sum(fact["fact"] == "end" for fact in found) + sum(fact["fact"] == "folder" and "error" in fact for fact in found)
        if done >= outcome.nodes or outcome.state != "COMPLETED" or time.monotonic() > until:
            break
        time.sleep(0.5)
    else:
        return
    for fact in found:
        rank = fact.pop("rank")
        outcome.names[rank] = fact.pop("node")
        outcome.facts.setdefault(fact.pop("fact"), {})[rank] = fact
    outcome.answered = sum(_text(folder / f"answer-{rank}") == nonce for rank in range(outcome.nodes))
    outcome.errors = "\n".join(_text(folder / "err").strip().splitlines()[-3:])


def _text(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8", errors="replace")
    except OSError:
        return ""


def _end(job: str) -> None:
    """Cancel the job, if it still is one, and wait a little until its processes are gone."""
    with contextlib.suppress(GraftError):
        slurm.command("scancel", job)
        for _ in range(60):
            if _value(slurm.command("scontrol", "show", "job", job, "-o"), "JobState") in _ENDED:
                return
            time.sleep(0.25)
        slurm.command("scancel", "--signal=KILL", "--full", job)
