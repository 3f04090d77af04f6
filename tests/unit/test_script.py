"""From a job to the text of its script: what a person reads in it, and that no value of it is ever run."""

from __future__ import annotations

import re
import shlex
import subprocess
import tomllib
from fnmatch import fnmatch
from pathlib import Path
from typing import Any

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

import launcher
from launcher.script import ARRAY, TRAIN, Job, directive, directives, render, render_array, template, warning
from trainer.config import GraftError, UserError

TEMPLATE = """\
#!/bin/bash
# A comment.
#SBATCH --job-name=graft

# >>> settings
GRAFT_RUN=${1-}
# <<< settings
echo "$GRAFT_RUN"
"""
GOLDEN = """\
#!/bin/bash
#SBATCH --job-name=clothing-vgg16
#SBATCH --nodes=2
#SBATCH --ntasks-per-node=1
#SBATCH --gpus-per-node=h100:8
#SBATCH --cpus-per-task=96
#SBATCH --mem=900G
#SBATCH --time=4:00:00
#SBATCH --partition=gpu
#SBATCH --account=vision
#SBATCH --qos=high
#SBATCH --constraint=ib
#SBATCH --requeue
#SBATCH --open-mode=append
#SBATCH --signal=USR1@300
#SBATCH --output="/data/my runs/100%%/log/slurm-%j.out"
#SBATCH --export=HOME,USER,LOGNAME,SHELL,LANG,PATH
#SBATCH --mail-type=FAIL
#SBATCH --exclusive
# A comment.

# >>> settings
GRAFT_RUN='/data/my runs/100%'
GRAFT_PYTHON=/venv/bin/python
GRAFT_SITE=/site/it.sh
GRAFT_CODE='/data/my runs/100%/code/files'
GRAFT_SAFEPATH=1
GRAFT_REQUEUES=7
GRAFT_OFFLINE=1
GRAFT_INTERFACE=ib0
GRAFT_SCRATCH=/local
GRAFT_MODULES=(gcc/13 cuda/12.8)
GRAFT_ENVIRONMENT=('NOTE=it'"'"'s $HOME' NCCL_DEBUG=WARN)
GRAFT_CONTAINER=(apptainer exec --nv /images/a.sif)
GRAFT_SRUN=('--container-image=a b')
GRAFT_OPTIONS=(--accept-changes)
# <<< settings
echo "$GRAFT_RUN"
"""
HOSTILE = [
    "a;touch X", "$(touch X)", "`touch X`", "${X}", "it's", 'say "hi"', "two  spaces", "-rf", "%x", "%j", "100%%", "#hash",
    "a #b", "Bjørn 東京", "*", "~root", "a&b|c>d", "!!", "..", "'\"'\"'", "é$'\\n'".replace("\\", ""),
]  # fmt: skip


def job(folder: str = "/runs/x", **values: Any) -> Job:
    return Job(**{"name": "x", "logs": Path(folder) / "log", "run": Path(folder), "python": "python3", **values})


def test_a_script_reads_as_a_person_would_write_it() -> None:
    full = job(
        "/data/my runs/100%", name="clothing-vgg16", nodes=2, gpus=8, gpu_type="h100", cpus=96, memory="900G", time="4:00:00",
        partition="gpu", account="vision", qos="high", constraint="ib", options=("--mail-type=FAIL", "--exclusive"),
        python="/venv/bin/python", site="/site/it.sh", code=Path("/data/my runs/100%/code/files"), safepath=True, requeues=7,
        offline=True, interface="ib0", scratch="/local", modules=("gcc/13", "cuda/12.8"),
        environment=(("NOTE", "it's $HOME"), ("NCCL_DEBUG", "WARN")), container=("apptainer", "exec", "--nv", "/images/a.sif"),
        srun=("--container-image=a b",), flags=("--accept-changes",),
    )  # fmt: skip
    assert render(TEMPLATE, full) == GOLDEN


def test_what_is_not_said_is_left_to_slurm() -> None:
    names = [line.partition("=")[0] for line in directives(job())]
    assert not {f"#SBATCH --{n}" for n in ("gpus-per-node", "mem", "time", "partition", "account", "cpus-per-task")} & {*names}


@pytest.mark.parametrize("name", [TRAIN, ARRAY])
def test_the_templates_take_exactly_these_settings(name: str) -> None:
    text = template(name)
    if name == TRAIN:
        made = render(text, job())
    else:
        made = render_array(text, job(array="0-9%2"), members=Path("/s/members.txt"), body=Path("/s/body.sbatch"))
    block = re.compile(r"# >>> settings\n(.*?)# <<< settings", re.DOTALL)

    def settings_of(script: str) -> list[str]:
        found = block.search(script)
        assert found
        return [line.partition("=")[0] for line in found[1].splitlines()]

    assert settings_of(made) == settings_of(text)
    assert block.sub("", made).replace("\n".join(directives(job(array="0-9%2" if name == ARRAY else None))) + "\n", "") == (
        "".join(line for line in block.sub("", text).splitlines(keepends=True) if not line.startswith("#SBATCH"))
    ), "nothing else is changed"
    assert subprocess.run(["bash", "-n"], input=made, text=True, check=False).returncode == 0


def test_an_array_names_its_members_and_its_body_takes_the_folder_as_argument() -> None:
    lines = directives(job(array="0-999%8"))
    assert "#SBATCH --array=0-999%8" in lines
    assert "#SBATCH --output=/runs/x/log/slurm-%A_%a.out" in lines
    assert "GRAFT_RUN=${1-}\n" in render(template(TRAIN), job(run=None))
    for wrong in ("0-9%0", "a", "0-9;id", "0-9%"):
        with pytest.raises(UserError, match="0-11%4"):
            directives(job(array=wrong))


@pytest.mark.parametrize(
    ("time", "asked", "seconds"),
    [
        (None, 300, 300), ("4:00:00", 300, 300), ("0:10:00", 300, 200), ("0:00:02", 300, 1), ("2-00:00:00", 90_000, 57_600),
        ("9-00:00:00", 90_000, 65_535), (None, 0.2, 1),
    ],
)  # fmt: skip
def test_the_warning_comes_in_time_and_leaves_time_to_train(time: str | None, asked: float, seconds: int) -> None:
    assert warning(job(time=time, warning=asked)) == seconds


@pytest.mark.parametrize("name", ["a\nb", "a\rb", "a\tb", "a\x00b", "a\x1b[31m", "a\u2028b", "a\u202eb", "\udcff"])
def test_what_is_no_printable_line_is_refused_wherever_it_stands(name: str) -> None:
    places: list[dict[str, Any]] = [
        {"run": Path("/r") / name}, {"logs": Path("/r") / name}, {"name": name}, {"python": name}, {"site": name},
        {"scratch": name}, {"code": Path("/r") / name}, {"modules": (name,)}, {"environment": (("A", name),)},
        {"container": (name,)}, {"srun": (name,)}, {"partition": name}, {"options": (f"--comment={name}",)}, {"flags": (name,)},
        {"interface": name},
    ]  # fmt: skip
    for place in places:
        with pytest.raises(UserError, match=r"cannot stand in a job script; choose a name of printable characters"):
            render(TEMPLATE, job(**place))


def test_folders_that_slurm_or_python_cannot_name_are_refused() -> None:
    with pytest.raises(UserError, match="backslash"):
        render(TEMPLATE, job("/runs/a\\b"))
    with pytest.raises(UserError, match="colon"):
        render(TEMPLATE, job(code=Path("/runs/a:b/code/files")))


@settings(max_examples=60, deadline=None)
@given(st.lists(st.text(st.characters(exclude_categories=("C", "Z")) | st.just(" "), min_size=1), min_size=1, max_size=4))
@example(HOSTILE)
@example(["\\", "\\\\", "'", '"'])
def test_every_printable_value_comes_out_of_bash_as_it_went_in(values: list[str]) -> None:
    values = [value for value in values if value.isprintable()]
    made = render(TEMPLATE, job(scratch=values[0] if values else "", modules=tuple(values), container=tuple(values)))
    block = made[made.index("# >>>") : made.index("# <<<")]
    said = subprocess.run(
        ["bash", "-uc", block + 'printf "%s\\0" "$GRAFT_SCRATCH" "${GRAFT_MODULES[@]}" "${GRAFT_CONTAINER[@]}"'],
        capture_output=True, check=True, cwd="/",
    )  # fmt: skip
    assert said.stdout.decode().split("\0")[:-1] == [values[0] if values else "", *values, *values] or not values
    assert said.stderr == b""


@given(st.text().filter(str.isprintable))
def test_a_directive_is_one_line_that_reads_back_as_the_value(value: str) -> None:
    line = directive("job-name", value)
    assert len(line.splitlines()) == 1
    words = shlex.split(line.removeprefix("#SBATCH "))
    assert words == [f"--job-name={value}" if value else "--job-name"]


def test_a_script_that_is_none_of_graft_is_refused() -> None:
    for text in ("echo\n", "#!/bin/bash\n", TEMPLATE + "# >>> settings\n"):
        with pytest.raises(GraftError, match="not a job script of graft"):
            render(text, job())


def test_a_missing_template_says_what_to_do(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(launcher, "__path__", [str(tmp_path / "launcher")])
    with pytest.raises(GraftError, match="install graft again"):
        template(TRAIN)


def test_the_templates_are_part_of_what_is_installed() -> None:
    root = Path(__file__).resolve().parents[2]
    tool = tomllib.loads((root / "pyproject.toml").read_text())["tool"]["setuptools"]
    assert "slurm*" in tool["packages"]["find"]["include"]
    for file in (root / "slurm").iterdir():
        assert any(fnmatch(file.name, pattern) for pattern in tool["package-data"]["slurm"]), file
    said = subprocess.run(["shellcheck", *(root / "slurm").glob("*.s*")], capture_output=True, text=True, check=False)
    assert said.returncode == 0, said.stdout
