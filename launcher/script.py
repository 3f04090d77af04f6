"""From everything that a job needs to the text of its script: pure, every value quoted.

The text is a template (slurm/train.sbatch, slurm/array.sbatch) whose `#SBATCH` lines and whose settings are replaced; what the
script does with them stands in the template alone, which is a valid script itself.
"""

from __future__ import annotations

import re
import shlex
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import launcher
from trainer.config import GraftError, UserError

TRAIN, ARRAY = "train.sbatch", "array.sbatch"
# What of the submitting environment travels. Slurm stores it with the job, for administrators and in dumps: so no keys.
EXPORTED = ("HOME", "USER", "LOGNAME", "SHELL", "LANG", "PATH")
_BEGIN, _END = "# >>> settings", "# <<< settings"
_ARGUMENT = "${1-}"  # the run folder in the body of an array
_LONGEST_WARNING = 65535  # seconds, what Slurm takes
_ARRAY = re.compile(r"[0-9]+(-[0-9]+)?(,[0-9]+(-[0-9]+)?)*(%[1-9][0-9]*)?")


@dataclass(frozen=True)
class Job:
    """All that a job script says. Times in seconds; empty text and none mean: not said.

    `run` is the run folder (none in the body of an array, which is told by its argument), `logs` the folder of the job's output,
    `array` the members of a sweep as Slurm writes them (`0-999%8`), `gpus` are those of a node. `code` is the folder that the job
    works in; with `safepath` it is not searched for modules. `options` are for sbatch, `flags` for the trainer.
    """

    name: str
    logs: Path
    python: str
    run: Path | None = None
    code: Path | None = None
    safepath: bool = False
    site: str = ""
    nodes: int = 1
    gpus: int = 0
    gpu_type: str | None = None
    cpus: int | None = None
    memory: str | None = None
    time: str | None = None
    warning: float = 300.0
    partition: str | None = None
    account: str | None = None
    qos: str | None = None
    constraint: str | None = None
    array: str | None = None
    requeues: int = 100
    offline: bool = False
    interface: str = ""
    scratch: str = ""
    modules: tuple[str, ...] = ()
    environment: tuple[tuple[str, str], ...] = ()
    container: tuple[str, ...] = ()
    srun: tuple[str, ...] = ()
    options: tuple[str, ...] = ()
    flags: tuple[str, ...] = ()


def template(name: str) -> str:
    """The text of slurm/train.sbatch or slurm/array.sbatch, beside the launcher in a checkout and in an installation."""
    file = Path(launcher.__path__[0]).resolve().parent / "slurm" / name
    try:
        return file.read_text(encoding="utf-8")
    except OSError as error:
        raise GraftError(f"{file}: the job script that comes with graft cannot be read ({error}); install graft again") from None


def render(text: str, job: Job) -> str:
    """The script of one run (or, without `job.run`, the body of an array) from the text of train.sbatch.

    Raises UserError for a value that Slurm or a line of a script cannot hold.
    """
    if job.code is not None and ":" in str(job.code) and not job.safepath:
        raise UserError(f"{str(job.code)!r}: Python searches no folder with a colon in its path; choose another with --runs")
    values = {
        "GRAFT_RUN": _ARGUMENT if job.run is None else quote("the run folder", str(job.run)),
        "GRAFT_PYTHON": quote("python", job.python),
        "GRAFT_SITE": quote("site", job.site),
        "GRAFT_CODE": quote("the folder of the code", str(job.code or "")),
        "GRAFT_SAFEPATH": quote("safepath", "1" if job.safepath else ""),
        "GRAFT_REQUEUES": str(job.requeues),
        "GRAFT_OFFLINE": quote("offline", "1" if job.offline else ""),
        "GRAFT_INTERFACE": quote("interface", job.interface),
        "GRAFT_SCRATCH": quote("scratch", job.scratch),
        "GRAFT_MODULES": _words("modules", job.modules),
        "GRAFT_ENVIRONMENT": _words("environment", [f"{name}={value}" for name, value in job.environment]),
        "GRAFT_CONTAINER": _words("container", job.container),
        "GRAFT_SRUN": _words("container", job.srun),
        "GRAFT_OPTIONS": _words("options", job.flags),
    }
    return _filled(text, directives(job), values)


def render_array(text: str, job: Job, *, members: Path, body: Path) -> str:
    """The script of a sweep from the text of array.sbatch. `members` lists the run folders, `body` is what `render` made."""
    values = {
        "GRAFT_MEMBERS": quote("the list of the members", str(members)),
        "GRAFT_BODY": quote("the script of a member", str(body)),
    }
    return _filled(text, directives(job), values)


def for_member(body: str, folder: Path, logs: Path) -> str:
    """The body of an array as the script of one of its members alone, with the same settings and the same code."""
    output = directive("output", _escaped(logs) + "slurm-%j.out")
    lines = [output if line.startswith("#SBATCH --output=") else line for line in body.splitlines()]
    lines[lines.index(f"GRAFT_RUN={_ARGUMENT}")] = f"GRAFT_RUN={quote('the run folder', str(folder))}"
    return "\n".join(lines) + "\n"


def directives(job: Job) -> list[str]:
    """The `#SBATCH` lines."""
    if job.array is not None and not _ARRAY.fullmatch(job.array):
        raise UserError(f"{job.array!r} is no list of array members; write 0-11, or 0-11%4 for at most four at once")
    pattern = "slurm-%j.out" if job.array is None else "slurm-%A_%a.out"
    gpus = f"{job.gpu_type}:{job.gpus}" if job.gpu_type else str(job.gpus)
    known: list[tuple[str, str | None]] = [
        ("job-name", job.name), ("nodes", str(job.nodes)), ("ntasks-per-node", "1"),
        ("gpus-per-node", gpus if job.gpus else None), ("cpus-per-task", str(job.cpus) if job.cpus else None),
        ("mem", job.memory), ("time", job.time), ("partition", job.partition), ("account", job.account), ("qos", job.qos),
        ("constraint", job.constraint), ("array", job.array), ("requeue", ""), ("open-mode", "append"),
        ("signal", f"USR1@{warning(job)}"), ("output", _escaped(job.logs) + pattern), ("export", ",".join(EXPORTED)),
    ]  # fmt: skip
    own = [option[2:].partition("=") for option in job.options]
    return [directive(name, value) for name, value in known if value is not None] + [directive(n, v) for n, _, v in own]


def warning(job: Job) -> int:
    """Seconds before the time limit at which the ranks are told: a third of the limit at most, so that a short job trains too."""
    wanted = job.warning if job.time is None else min(job.warning, seconds(job.time) / 3)
    return max(1, min(int(wanted), _LONGEST_WARNING))


def seconds(time: str) -> int:
    """Seconds of `4:00:00` or `2-12:00:00`."""
    days, _, clock = time.rpartition("-")
    hours, minutes, rest = (int(part) for part in clock.split(":"))
    return ((int(days or 0) * 24 + hours) * 60 + minutes) * 60 + rest


def directive(name: str, value: str) -> str:
    """One `#SBATCH` line.

    sbatch reads words as a shell does, with one difference: a backslash escapes in either kind of quotes. Nothing is expanded.
    """
    if not re.fullmatch(r"[A-Za-z0-9:,._=+@%*/-]*", value):
        value = '"' + _printable(f"--{name}", value).replace("\\", "\\\\").replace('"', '\\"') + '"'
    return f"#SBATCH --{name}" + (f"={value}" if value else "")


def quote(what: str, value: str) -> str:
    """A word of a shell script; UserError, which calls it `what`, for one that is not printable text on one line."""
    return shlex.quote(_printable(what, value))


def _words(what: str, values: Sequence[str]) -> str:
    return "(" + " ".join(quote(what, value) for value in values) + ")"


def _escaped(logs: Path) -> str:
    """A folder at the beginning of a file name pattern of Slurm's, in which % stands for something."""
    text = str(logs)
    if "\\" in text:  # Slurm then takes the whole pattern literally: all jobs would write to a file called slurm-%j.out
        raise UserError(
            f"{text!r}: Slurm cannot write its log into a folder with a backslash in its name; choose another with --runs"
        )
    return text.replace("%", "%%") + "/"


def _printable(what: str, value: str) -> str:
    if not value.isprintable():
        raise UserError(
            f"{what} is {value!r}: line breaks, control characters and bytes that are no text cannot stand in a job script; "
            "choose a name of printable characters"
        )
    return value


def _filled(text: str, lines: Sequence[str], values: dict[str, str]) -> str:
    """The template with these directives after its first line, in place of its own, and with these settings."""
    first, *rest = text.splitlines()
    if not first.startswith("#!") or rest.count(_BEGIN) != 1 or rest.count(_END) != 1:
        raise GraftError(f"not a job script of graft: it begins with #! and has one `{_BEGIN}` and one `{_END}`")
    rest = [line for line in rest if not line.startswith("#SBATCH")]
    begin, end = rest.index(_BEGIN), rest.index(_END)
    settings = [f"{name}={value}" for name, value in values.items()]
    return "\n".join([first, *lines, *rest[: begin + 1], *settings, *rest[end:]]) + "\n"
