"""`graft submit` with secrets around it and with hostile names, on real daemons: nothing leaks, nothing runs."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from launcher.script import Job, directives, render
from tests.cluster.daemons import TestCluster
from tests.cluster.desk import Desk, finished

SECRETS = {"WANDB_API_KEY": "wandb-0123456789", "MY_TOKEN": "token-0123456789", "SLURM_MY_SECRET": "slurm-0123456789"}


@pytest.fixture
def desk(tmp_path: Path, cluster: TestCluster) -> Desk:
    return Desk(tmp_path / "desk", cluster)


def test_no_secret_of_the_submitting_environment_gets_anywhere(desk: Desk, cluster: TestCluster, tmp_path: Path) -> None:
    (desk.folder / ".env").write_text("".join(f"{name}={value}\n" for name, value in SECRETS.items()))
    out = tmp_path / "environment"
    (desk.folder / "probe.sh").write_text(f"env >{out}; xargs -0 -a /proc/self/environ >>{out}; echo end >>{out}; exit 0\n")
    (desk.folder / "configs" / "clusters" / "site.yaml").write_text("site: probe.sh\n")
    job = desk.submit(**SECRETS, SBATCH_EXPORT="ALL", SBATCH_COMMENT="x", SBATCH_OUTPUT="elsewhere")
    environment = finished(out)
    shown = cluster.run("scontrol", "show", "job", "-dd", job).stdout
    stored = cluster.run("scontrol", "write", "batch_script", job, "-").stdout
    assert stored.rstrip("\0\n") == (desk.run.path / "job.sbatch").read_text().rstrip("\n")
    kept = [path.read_bytes() for path in desk.run.path.rglob("*") if path.is_file()]
    state = [path.read_bytes() for path in (cluster.folder / "state").rglob("*") if path.is_file()]
    everything = b"\n".join([environment.encode(), shown.encode(), stored.encode(), *kept, *state])
    for name, value in SECRETS.items():
        assert value.encode() not in everything, name
    assert b"digits:0-4" in everything
    assert f"StdOut={desk.run.logs}/slurm-{job}.out" in shown, "SBATCH_OUTPUT does not overrule the script"
    left_out = json.loads((desk.run.code / "code.json").read_text())["left_out"]
    assert left_out[0]["path"] == ".env"
    assert "holds the value of $" in left_out[0]["why"]


def test_a_secret_in_the_cluster_file_or_the_run_is_refused(desk: Desk) -> None:
    (desk.folder / "configs" / "clusters" / "site.yaml").write_text("environment: {NOTE: 'wandb-0123456789'}\n")
    assert "the job script would hold the value of $WANDB_API_KEY" in desk.refused(3, "pets.yaml", **SECRETS)
    (desk.folder / "configs" / "clusters" / "site.yaml").unlink()
    said = desk.refused(3, "pets.yaml", "model.args.key=token-0123456789", **SECRETS)
    assert "the run file would hold the value of $MY_TOKEN" in said
    assert not desk.run.path.exists()


HOSTILE = [
    "a;touch X", "$(touch X)", "`touch X`", "it's", 'say "hi"', "two  spaces", "-rf", "%x", "%j%A", "100%", "#hash", "a #b",
    "Bjørn 東京", "*", "a,b=c",
]  # fmt: skip


def test_hostile_folders_run_nothing_and_get_their_output(cluster: TestCluster, tmp_path: Path) -> None:
    template = '#!/bin/bash\n# >>> settings\n# <<< settings\nprintf "%s\\n" "$GRAFT_RUN" "$SLURM_JOB_NAME" end\n'
    jobs = {}
    for name in HOSTILE:
        folder = tmp_path / "runs" / name
        (folder / "log").mkdir(parents=True)
        script = folder / "job.sbatch"
        script.write_text(render(template, Job(name=f"-{name}; id", logs=folder / "log", run=folder, python="python3")))
        jobs[name] = cluster.run("sbatch", "--parsable", str(script), cwd=tmp_path).stdout.strip()
    for name, job in jobs.items():
        folder = tmp_path / "runs" / name
        assert finished(folder / "log" / f"slurm-{job}.out") == f"{folder}\n-{name}; id\nend\n"
        assert {path.name for path in folder.rglob("*")} == {"job.sbatch", "log", f"slurm-{job}.out"}
    assert {path.name for path in tmp_path.rglob("X")} == set()
    assert {path.name for path in (tmp_path / "runs").iterdir()} == set(HOSTILE)
    assert {path.name for path in tmp_path.iterdir()} == {"runs"}


def test_names_that_cannot_be_quoted_are_refused_before_anything_is_written(desk: Desk) -> None:
    for runs, words in (("a\nb", "line breaks"), ("a\\b", "backslash"), ("a:b", "colon")):
        assert words in desk.refused(2, "pets.yaml", "--runs", runs)
        assert not (desk.folder / runs).exists()
    for name in ("a\n#SBATCH --uid=0", "../x", "-x", "a;id", "$(id)"):
        assert "letters, digits, dots" in desk.refused(2, "pets.yaml", f"name={json.dumps(name)}")


def test_an_array_writes_one_file_a_member(cluster: TestCluster, tmp_path: Path) -> None:
    logs = tmp_path / "100% sweep"
    logs.mkdir()
    script = tmp_path / "array.sbatch"
    lines = directives(Job(name="sweep", logs=logs, python="", array="0-2%2"))
    script.write_text("\n".join(["#!/bin/bash", *lines, "echo end"]) + "\n")
    job = cluster.run("sbatch", "--parsable", str(script)).stdout.strip()
    for member in range(3):
        finished(logs / f"slurm-{job}_{member}.out")
