"""A site, described once: its partitions, account, nodes, modules, container, interfaces and scratch."""

from __future__ import annotations

import os
import re
from pathlib import Path
from typing import Annotated, Literal

from pydantic import AfterValidator, Field, ValidationError, field_validator

from launcher import secrets
from trainer.config import UserError, explain, nearest, yamlfile
from trainer.config.amounts import Seconds
from trainer.config.base import Section
from trainer.config.run import WORD, Resources

_VARIABLE = re.compile(r"[A-Za-z_][A-Za-z0-9_]*")
_OPTION = re.compile(r"--[a-z][a-z-]*(=[A-Za-z0-9_.,:/@%+*\[\]&|-]+)?")
_OURS = {
    "job-name", "output", "error", "open-mode", "nodes", "ntasks", "ntasks-per-node", "array", "signal", "requeue", "no-requeue",
    "export", "export-file", "gpus", "gpus-per-node", "gpus-per-task", "time", "partition", "account", "wrap", "chdir",
    "parsable", "wait", "test-only", "help", "usage", "version",
}  # fmt: skip


def _word(value: str) -> str:
    if not WORD.fullmatch(value):
        raise ValueError("letters, digits, dots, commas, dashes and underscores only, beginning with a letter or a digit")
    return value


def _plain(value: str) -> str:
    if not value.isprintable():
        raise ValueError("no line breaks and no control characters")
    return value


def _literal(value: str) -> str:
    if "$" in value:
        raise ValueError("taken literally, variables are not replaced; export TMPDIR in the site file instead")
    return _plain(value)


def _image(value: str) -> str:
    if value.startswith("-"):
        raise ValueError("a path or an address, which does not begin with a dash")
    return _plain(value)


Word = Annotated[str, AfterValidator(_word)]
Plain = Annotated[str, AfterValidator(_plain)]


class Container(Section):
    """What the job's processes run in."""

    kind: Literal["apptainer", "enroot", "pyxis"]
    image: Annotated[str, AfterValidator(_image)] = Field(description="path or address of the image")
    mounts: list[Plain] = Field(
        default_factory=list, description="HOST or HOST:INSIDE; run folders, code and data must be among them"
    )


class Cluster(Section):
    """One site. What a run's `resources` set goes before."""

    partition: Word | None = Field(None, description="where to queue; none: Slurm's default")
    account: Word | None = None
    qos: Word | None = None
    constraint: Word | None = Field(None, description="a feature that the nodes must have")
    gpus_per_node: int | None = Field(None, ge=1, description="GPUs of a node that a run takes unless it says otherwise")
    gpu_type: Word | None = Field(None, description="as in Gres: h100, a100")
    cpus_per_gpu: int | None = Field(None, ge=1, description="CPU cores for each GPU (for each process without GPUs)")
    memory: Word | None = Field(None, description="memory of a node: 400G; none: the partition's default", examples=["400G"])
    time: str | None = Field(None, description="time limit of a job that does not say; the run goes on in the next job")
    warning: Seconds = Field(300.0, gt=0, description="how long before the time limit a job is told to save and go on later")
    requeues: int = Field(100, ge=0, description="how often a job may be queued again before a person must look")
    python: Plain | None = Field(
        None, description="the interpreter on the nodes; none: the one that submits, or python3 in a container"
    )
    site: Plain | None = Field(
        None, description="a shell file that jobs source first: modules, paths (slurm/site.sh is a commented one)"
    )
    modules: list[Word | Annotated[str, Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9._+/-]*$")]] = Field(
        default_factory=list, description="what `module load` is given on each node"
    )
    container: Container | None = None
    interface: Word | None = Field(None, description="network interface between the nodes, for NCCL and gloo: ib0")
    scratch: Annotated[str, AfterValidator(_literal)] | None = Field(
        None, description="fast folder of a node, for temporary files"
    )
    network: bool = Field(True, description="false: compute nodes reach no server; W&B and the hubs are used offline there")
    environment: dict[str, Plain] = Field(
        default_factory=dict, description="variables of the job; no secrets: keys go into ~/.netrc"
    )
    options: list[str] = Field(default_factory=list, description="further options of sbatch, such as --reservation=courses")

    @field_validator("time")
    @classmethod
    def _time(cls, value: str | None) -> str | None:
        return Resources(time=value).time

    @field_validator("environment")
    @classmethod
    def _variables(cls, value: dict[str, str]) -> dict[str, str]:
        for name in value:
            if not _VARIABLE.fullmatch(name):
                raise ValueError(f"{name!r} is no name of a variable")
            if secrets.NAME.search(name):
                raise ValueError(
                    f"{name} looks like a secret: Slurm stores job scripts; keep keys in files of yours, such as ~/.netrc"
                )
        return value

    @field_validator("options")
    @classmethod
    def _options(cls, value: list[str]) -> list[str]:
        for option in value:
            if not _OPTION.fullmatch(option):
                raise ValueError(f"{option!r}: write --name or --name=value, without spaces and quotes")
            if option[2:].partition("=")[0] in _OURS:
                raise ValueError(f"{option}: graft sets this itself, from the run's resources and the other keys here")
        return value


def folders() -> list[Path]:
    """Where cluster files are looked for, the first found counts: the project's, then the user's."""
    own = Path(os.environ.get("XDG_CONFIG_HOME") or "~/.config").expanduser() / "graft" / "clusters"
    return [Path("configs/clusters"), own]


def known() -> dict[str, Path]:
    """The cluster files by name."""
    found: dict[str, Path] = {}
    for folder in folders():
        for file in sorted(folder.glob("*.yaml")):
            found.setdefault(file.stem, file)
    return found


def load_cluster(name: str | None) -> Cluster:
    """The cluster of that name; without a name default.yaml, or the only file there is, or one that says nothing.

    Raises UserError for an unknown name and for a file with mistakes.
    """
    files = known()
    if name is None:
        file = files.get("default") or (next(iter(files.values())) if len(files) == 1 else None)
        if file is None and files:
            raise UserError(f"resources.cluster is not set and there are {', '.join(files)}; name one, or call one default.yaml")
    else:
        file = files.get(name)
        if file is None:
            where = " or ".join(str(folder) for folder in folders())
            raise UserError(f"resources.cluster is {name!r} and there is no {name}.yaml in {where}{nearest(name, files)}")
    return Cluster() if file is None else read(file)


def read(file: Path) -> Cluster:
    """Read and check a cluster file."""
    document = yamlfile.read(file, "cluster file")
    try:
        return Cluster.model_validate(document.value)
    except ValidationError as error:
        raise UserError(explain(error, document, Cluster)) from None
