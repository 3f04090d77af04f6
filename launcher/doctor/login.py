"""The login node: Slurm's commands and settings, the cluster file, the interpreter of the jobs."""

from __future__ import annotations

import json
import re
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

from launcher import slurm
from launcher.cluster import Cluster, known
from launcher.doctor.check import Check, failed, ok, unchecked, warning
from launcher.probe.node import PACKAGES, versions

NEEDED = ("sbatch", "squeue", "scontrol", "srun", "scancel")
OPTIONAL = {"sinfo": "shows partitions", "sacct": "remembers old jobs; graft does without"}
OLDEST, TRIED = (21, 8), "22.05"  # Slurm versions
_LEAST_SAVE = 10  # seconds that a job told to end should have
_SAME = ("torch", "accelerate")  # distributions whose versions on login and compute node should agree


def commands() -> Iterator[Check]:
    """Slurm's commands and git."""
    missing = [name for name in NEEDED if shutil.which(name) is None]
    if missing:
        yield failed(
            "slurm commands", f"not on PATH: {', '.join(missing)}",
            "Run graft doctor on a login node, or put Slurm's bin folder on PATH (`module load slurm` at some sites).",
        )  # fmt: skip
    else:
        yield ok("slurm commands", ", ".join(NEEDED))
    absent = [f"{name} ({what})" for name, what in OPTIONAL.items() if shutil.which(name) is None]
    if absent:
        yield warning("optional commands", f"missing: {', '.join(absent)}", "Nothing needs to be done: graft works without them.")
    else:
        yield ok("optional commands", ", ".join(OPTIONAL))
    if shutil.which("git") is None:
        yield warning(
            "git", "not on PATH", "Install git, or load its module: with it each submitted run records the code that it ran with."
        )
    else:
        said = subprocess.run(["git", "--version"], capture_output=True, text=True, timeout=20, check=False).stdout
        yield ok("git", said.strip().removeprefix("git version "))


def version() -> Iterator[Check]:
    """The version of Slurm here."""
    said = slurm.command("sbatch", "--version").strip()
    found = re.search(r"(\d+)\.(\d+)", said)
    if found is None:
        yield warning("slurm version", said or "says none", f"graft was tried on Slurm {TRIED}; try a short run first.")
    elif (int(found[1]), int(found[2])) < OLDEST:
        yield warning(
            "slurm version",
            said,
            f"graft needs Slurm {OLDEST[0]}.{OLDEST[1]:02} or later; ask the administrators, or try a short run.",
        )
    else:
        yield ok("slurm version", said)


def cluster_file(name: str | None) -> Iterator[Check]:
    """Which cluster file counts (that it is read without mistakes, the caller knows)."""
    files = known()
    file = files.get(name) if name else files.get("default") or (next(iter(files.values())) if len(files) == 1 else None)
    if file is None:
        yield warning(
            "cluster file", "there is none: Slurm's own defaults count",
            "Write configs/clusters/default.yaml: partition, account, gpus_per_node, time (see configs/clusters).",
        )  # fmt: skip
    else:
        yield ok("cluster file", str(file))


def settings() -> dict[str, str]:
    """Slurm's configuration by key. GraftError when the controller does not answer."""
    said = slurm.command("scontrol", "show", "config")
    pairs = (line.partition("=") for line in said.splitlines() if "=" in line)
    return {key.strip(): value.strip() for key, _, value in pairs}


def configuration(config: dict[str, str]) -> Iterator[Check]:
    """What of Slurm's configuration matters to graft."""
    yield ok("controller", f"{config.get('SlurmctldHost[0]', '?')} answers; Slurm {config.get('SLURM_VERSION', '?')}")
    automatic = config.get("JobRequeue") == "1"
    yield ok("requeue", ("Slurm requeues jobs" if automatic else "off by default (JobRequeue=0)") + "; graft asks for it itself")
    wait = _number(config.get("KillWait", ""))
    if wait is not None and wait < _LEAST_SAVE:
        yield warning(
            "time to save", f"KillWait is {wait} s: so long has a cancelled job to save",
            "Set checkpoint.every so that losing one interval is bearable; before its time limit a job is told early enough.",
        )  # fmt: skip
    else:
        yield ok("time to save", f"{wait if wait is not None else '?'} s from cancel to kill (KillWait)")
    most = _number(config.get("MaxArraySize", ""))
    if most is not None and most < 2:
        yield warning("sweeps", "job arrays are off (MaxArraySize)", "Use graft sweep --local, or ask for MaxArraySize=1001.")
    else:
        yield ok("sweeps", f"up to {(most or 1001) - 1:,} members in one array (MaxArraySize)")
    if config.get("AccountingStorageType", "").endswith("/none"):
        yield ok("accounting", "none: squeue alone tells of jobs, which is enough")
    else:
        yield ok("accounting", config.get("AccountingStorageType", "?"))


def python(cluster: Cluster, *, at_nodes: bool) -> Iterator[Check]:
    """Whether the interpreter of the jobs has what a run needs, in the versions that are installed here."""
    name = str(Path(cluster.python).expanduser()) if cluster.python else sys.executable
    later = "it is looked at on the nodes" if at_nodes else "leave out --login-only to look at it on the nodes"
    if cluster.container is not None:
        yield unchecked("python of the jobs", f"{cluster.python or 'python3'} is inside the container; {later}")
        return
    if shutil.which(name) is None:
        if cluster.modules or cluster.site:
            yield unchecked("python of the jobs", f"{name} is not here, modules or the site file may bring it; {later}")
        else:
            yield warning(
                "python of the jobs", f"{name} is not on the login node; {later}",
                "Correct `python` in the cluster file unless that interpreter exists on compute nodes only.",
            )  # fmt: skip
        return
    yield judge_versions("python of the jobs", name, _versions(name))


def judge_versions(name: str, executable: str, there: dict[str, str], here: dict[str, str] | None = None) -> Check:
    """Whether an interpreter can train, and with the versions that are here."""
    here = here or versions()
    shown = f"{executable}: " + ", ".join(
        f"{package} {number}" for package, number in there.items() if package in ("python", *_SAME)
    )
    missing = [package for package in PACKAGES if package not in there and package != "graft-trainer"]
    if missing:
        return failed(
            name, f"{shown}; missing: {', '.join(missing)}",
            f"Install graft there (`{executable} -m pip install -e .`), or name another `python` in the cluster file.",
        )  # fmt: skip
    if tuple(int(part) for part in there["python"].split(".")[:2]) < (3, 11):
        return failed(name, shown, "graft needs Python 3.11 or later: name another interpreter as `python` in the cluster file.")
    differ = [
        f"{package} {there[package]} (here {here[package]})"
        for package in _SAME
        if here.get(package) not in (None, there[package])
    ]
    if differ:
        return warning(
            name, f"{shown}; {', '.join(differ)}", "Install the same versions on both, so that what you try here is what runs."
        )
    return ok(name, shown)


def site(cluster: Cluster) -> Iterator[Check]:
    """The site file and the image of the container, where the cluster file names them."""
    if cluster.site:
        file = Path(cluster.site).expanduser()
        said = subprocess.run(["bash", "-n", str(file)], capture_output=True, text=True, timeout=20, check=False)
        if said.returncode:
            yield failed(
                "site file", (said.stderr.strip() or "bash cannot read it").splitlines()[0], "Correct the file that `site` names."
            )
        else:
            yield ok("site file", str(file))
    image = cluster.container.image if cluster.container else ""
    if image.startswith(("/", "~", ".")):
        if Path(image).expanduser().exists():
            yield ok("container", image)
        else:
            yield failed(
                "container", f"{image} does not exist", "Correct container.image in the cluster file, or build the image."
            )


def _versions(executable: str) -> dict[str, str]:
    """What `versions` says under another interpreter; empty when it does not run."""
    code = (
        "import importlib.metadata as m, json, platform, sys\n"
        "found = {'python': platform.python_version()}\n"
        "for name in sys.argv[1:]:\n"
        "    try: found[name] = m.version(name)\n"
        "    except m.PackageNotFoundError: pass\n"
        "print(json.dumps(found))\n"
    )
    words = [executable, "-I", "-c", code, *PACKAGES]
    done = subprocess.run(words, capture_output=True, text=True, timeout=60, check=False)
    if done.returncode:
        raise ValueError(f"{executable} does not work: {(done.stderr.strip() or 'no message').splitlines()[-1]}")
    found: dict[str, str] = json.loads(done.stdout)
    return found


def _number(text: str) -> int | None:
    """The number that a value such as `30 sec` begins with."""
    found = re.match(r"\d+", text)
    return int(found[0]) if found else None
