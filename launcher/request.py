"""What a run asks of a site: its own settings first, then those of the cluster file."""

from __future__ import annotations

import os
import sys
from collections.abc import Sequence
from pathlib import Path

from launcher.cluster import Cluster
from launcher.machine import Machine
from launcher.plan import Plan
from launcher.python import root, shadowed
from launcher.script import Job
from launcher.snapshot import Code
from trainer.config import Run, UserError

# what the ranks read and enroot would keep from them
_INTO_ENROOT = (
    "CUDA_VISIBLE_DEVICES", "GLOO_SOCKET_IFNAME", "GRAFT_MEET_WITHIN", "GRAFT_NODES", "GRAFT_SCRIPT", "HF_DATASETS_OFFLINE",
    "HF_HUB_OFFLINE", "NCCL_SOCKET_IFNAME", "PYTHONPATH", "PYTHONSAFEPATH", "SLURMD_NODENAME", "SLURM_ARRAY_JOB_ID",
    "SLURM_ARRAY_TASK_ID", "SLURM_GPUS_ON_NODE", "SLURM_JOB_ID", "SLURM_JOB_NODELIST", "SLURM_JOB_NUM_NODES", "SLURM_NODEID",
    "SLURM_RESTART_COUNT", "TMPDIR", "TRANSFORMERS_OFFLINE", "WANDB_MODE",
)  # fmt: skip


def merged(run: Run, cluster: Cluster) -> Run:
    """The run with the cluster's values where its `resources` say nothing."""
    theirs = {key: getattr(cluster, key) for key in ("gpus_per_node", "time", "partition", "account")}
    ours = {key: value for key, value in run.resources if value is not None}
    return run.model_copy(update={"resources": run.resources.model_copy(update={**theirs, **ours})})


def node_of(run: Run, cluster: Cluster) -> Machine:
    """A node of the cluster, as this run (with the cluster's values) gets it. Raises UserError for what no node can give."""
    gpus = run.resources.gpus_per_node or 0
    wanted, asked = run.parallel.device, run.parallel.processes
    if wanted == "cuda" and not gpus:
        raise UserError(
            "parallel.device is cuda and neither resources.gpus_per_node nor the cluster file says how many GPUs a node has; "
            "write resources.gpus_per_node=8, or what it is"
        )
    if wanted != "cpu" and gpus and asked != "auto" and asked > gpus:
        raise UserError(
            f"parallel.processes is {asked} and a node gives this run {gpus} GPU{'s' if gpus > 1 else ''}; "
            f"write parallel.processes={gpus}, resources.gpus_per_node={asked}, or parallel.device=cpu"
        )
    ranks = gpus if wanted != "cpu" and gpus else 1 if asked == "auto" else asked
    return Machine(gpus, ranks * (cluster.cpus_per_gpu or 1))


def job_of(
    run: Run, cluster: Cluster, planned: Plan, code: Code, *, name: str, logs: Path, folder: Path | None,
    array: str | None = None, flags: Sequence[str] = (),
) -> Job:  # fmt: skip
    """The job of a run (merged with its cluster). `folder`: the run folder, none for the body of an array."""
    local = planned.world_size // planned.nodes
    gpus = local if planned.device == "cuda" else 0  # no more than there are ranks
    each = cluster.cpus_per_gpu or (None if gpus else run.parallel.threads or 1)
    contained, steps = container(cluster, code.work, gpus=gpus)
    python = str(Path(cluster.python).expanduser()) if cluster.python else "python3" if cluster.container else sys.executable
    return Job(
        name=name, logs=logs, run=folder, array=array, flags=tuple(flags), python=python,
        code=code.work, safepath=shadowed(code.here), site=_site(cluster, code),
        nodes=planned.nodes, gpus=gpus, gpu_type=cluster.gpu_type, cpus=each * local if each else None, memory=cluster.memory,
        time=run.resources.time, warning=cluster.warning, partition=run.resources.partition, account=run.resources.account,
        qos=cluster.qos, constraint=cluster.constraint, requeues=cluster.requeues, offline=not cluster.network,
        interface=cluster.interface or "", scratch=cluster.scratch or "", modules=tuple(cluster.modules),
        environment=_environment(cluster), container=contained, srun=steps, options=tuple(cluster.options),
    )  # fmt: skip


def container(cluster: Cluster, work: Path, *, gpus: int) -> tuple[tuple[str, ...], tuple[str, ...]]:
    """The words before the interpreter, and further options of srun, that put a job into the site's container."""
    asked = cluster.container
    if asked is None:
        return (), ()
    if asked.kind == "apptainer":
        binds = (word for mount in asked.mounts for word in ("--bind", mount))
        return ("apptainer", "exec", *(("--nv",) if gpus else ()), *binds, "--pwd", str(work), asked.image), ()
    mounts = [mount if ":" in mount else f"{mount}:{mount}" for mount in asked.mounts]
    if asked.kind == "enroot":
        names = [*_INTO_ENROOT, *(name for name in cluster.environment if name not in _INTO_ENROOT)]
        passed = (word for name in names for word in ("--env", name))
        return ("enroot", "start", *(w for mount in mounts for w in ("--mount", mount)), *passed, "--", asked.image), ()
    options = [f"--container-image={asked.image}", f"--container-workdir={work}"]
    return (), (*options, *((f"--container-mounts={','.join(mounts)}",) if mounts else ()))


def _site(cluster: Cluster, code: Code) -> str:
    """The site file's path, in the snapshot if it is part of the code."""
    if cluster.site is None:
        return ""
    file = Path.cwd() / Path(cluster.site).expanduser()
    if not file.is_file():
        raise UserError(f"the cluster file's site is {cluster.site}, and there is no file {file}")
    return str(code.moved(file))


def _environment(cluster: Cluster) -> tuple[tuple[str, str], ...]:
    """The job's variables. A trainer that was found through PYTHONPATH here is found so there too."""
    given = dict(cluster.environment)
    searched = [Path(entry).resolve() for entry in os.environ.get("PYTHONPATH", "").split(os.pathsep) if entry]
    if root() in searched and cluster.container is None:
        given["PYTHONPATH"] = os.pathsep.join(filter(None, (str(root()), given.get("PYTHONPATH"))))
    return tuple(given.items())
