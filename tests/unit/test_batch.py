"""slurm/train.sbatch up to the first call of graft, without Slurm: what a site's own shell files do to it."""

from __future__ import annotations

import os
import subprocess
from pathlib import Path

import pytest

from tests.trainers import ROOT


def start(folder: Path, site: str, modules: str = "") -> subprocess.CompletedProcess[str]:
    """Run the script with a site file and modules; in place of Python stands a program that says how it was called, and fails."""
    script, python = folder / "train.sbatch", folder / "python"
    text = (ROOT / "slurm" / "train.sbatch").read_text()
    script.write_text(text.replace("GRAFT_MODULES=()", f"GRAFT_MODULES=({modules})"))
    python.write_text('#!/bin/sh\necho "called: $*; job $SLURM_JOB_ID; site $FROM_SITE" >&2\nexit 7\n')
    python.chmod(0o755)
    (folder / "site.sh").write_text(site)
    environment = {"PATH": os.environ["PATH"], "SLURM_JOB_ID": "5", "SLURM_JOB_NODELIST": "n1", "SLURM_SUBMIT_DIR": str(folder),
                   "GRAFT_PYTHON": str(python), "GRAFT_SITE": str(folder / "site.sh")}  # fmt: skip
    words = ["bash", str(script), "run.yaml"]
    return subprocess.run(words, env=environment, capture_output=True, text=True, timeout=30, check=False)


def test_a_site_file_may_use_what_is_not_set(tmp_path: Path) -> None:
    """So do the files of Lmod and conda; variables of the script may not be overwritten by it either."""
    done = start(tmp_path, 'export FROM_SITE="yes$NOT_SET"\njob=other python=other\n')
    assert done.returncode == 7
    assert "called: -m launcher.job begin run.yaml; job 5; site yes" in done.stderr


@pytest.mark.parametrize("works", [True, False])
def test_modules(tmp_path: Path, *, works: bool) -> None:
    """`module` of a site file is used; one that needs variables that are not set works; a failure is said."""
    module = f'module() {{ FROM_SITE="$*$NOT_SET"; export FROM_SITE; {"true" if works else "false"}; }}\n'
    done = start(tmp_path, module, "cuda/12.8")
    assert done.returncode == (7 if works else 1)
    assert ("site load cuda/12.8" if works else "module load cuda/12.8 failed; `module avail` lists") in done.stderr


def test_no_modules_here(tmp_path: Path) -> None:
    done = start(tmp_path, "unset -f module\n", "cuda/12.8")
    if not any(Path("/etc/profile.d").glob("*mod*.sh")):
        assert done.returncode == 1
        assert "`module` is not there on" in done.stderr
        assert "define it in a site file" in done.stderr


def asked(folder: Path, program: str) -> tuple[subprocess.CompletedProcess[str], int]:
    """`ask` of the script with a program in place of one of Slurm's; what it printed, and how often it was called."""
    text = (ROOT / "slurm" / "train.sbatch").read_text()
    function = text[text.index("ask() {") : text.index("\n}\n", text.index("ask() {")) + 3]
    tool, count = folder / "scontrol", folder / "count"
    tool.write_text(f'#!/bin/bash\necho >>"{count}"\n{program}\n')
    tool.chmod(0o755)
    script = f'set -u\nsay() {{ echo "$*" >&2; }}\nsleep() {{ :; }}\n{function}\nask "{tool}" requeue 5'
    done = subprocess.run(["bash", "-c", script], capture_output=True, text=True, timeout=30, check=False)
    return done, len(count.read_text().splitlines())


def test_a_controller_that_is_away_is_asked_again(tmp_path: Path) -> None:
    away = "slurm_load_jobs error: Unable to contact slurm controller (connect failure)"
    done, times = asked(tmp_path, f'(($(wc -l <"{tmp_path}/count") > 3)) && echo "RUNNING 0" && exit\necho "{away}" >&2\nexit 1')
    assert (done.returncode, done.stdout, times) == (0, "RUNNING 0\n", 4)


def test_what_the_controller_refuses_is_said_at_once(tmp_path: Path) -> None:
    done, times = asked(tmp_path, 'echo "Requested operation is presently disabled" >&2; exit 1')
    assert (done.returncode, times) == (1, 1)
    assert "Requested operation is presently disabled" in done.stderr
