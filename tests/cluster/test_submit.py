"""`graft submit` on real daemons: what is handed in, what Slurm then knows, and what runs."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from launcher.submit import submit_folder
from tests.cluster.daemons import TestCluster
from tests.cluster.desk import NETS, ROOT, Desk
from trainer.config import RefusedError
from trainer.rundir import Lease


@pytest.fixture
def desk(tmp_path: Path, cluster: TestCluster) -> Desk:
    return Desk(tmp_path / "desk", cluster)


def test_a_submitted_run_trains_with_the_code_of_then(desk: Desk, cluster: TestCluster) -> None:
    desk.hold()
    job = desk.submit()
    (desk.folder / "nets.py").write_text("raise SystemExit('edited while the job waits')\n")
    cluster.run("scontrol", "release", job)
    cluster.wait(job, ["COMPLETED", "FAILED", "CANCELLED"], timeout=90)
    log = (desk.run.logs / f"slurm-{job}.out").read_text()
    marker = desk.run.marker()
    assert marker is not None, log
    assert (marker.state, cluster.state(job)) == ("DONE", "COMPLETED"), log
    assert desk.mark.read_text() == str(desk.run.code / "files" / "nets.py")
    assert json.loads(desk.run.job.read_text())["id"] == job
    assert json.loads(desk.run.manifest.read_text())["git"].endswith("+"), "the cluster file was changed"
    (desk.folder / "nets.py").write_text(NETS.replace("MARK", repr(str(desk.mark))))
    again = desk.graft("submit", "pets.yaml")
    assert "is done already" in again.stdout
    assert cluster.run("squeue", "-h").stdout == ""


def test_what_plan_prints_is_what_submit_writes_to_the_byte(desk: Desk) -> None:
    desk.hold()
    printed = desk.graft("plan", "pets.yaml", "--script", "resources.nodes=2").stdout
    assert not desk.run.path.exists(), "a plan writes nothing"
    desk.submit("resources.nodes=2")
    assert (desk.run.path / "job.sbatch").read_text() == printed
    assert desk.graft("plan", str(desk.run.path), "--script").stdout == printed


def test_a_run_that_is_queued_or_held_is_not_submitted_again(desk: Desk, cluster: TestCluster) -> None:
    desk.hold()
    job = desk.submit()
    assert f"pets is job {job} already, which is pending" in desk.refused(3, "pets.yaml")
    assert f"pets is job {job} already" in desk.refused(3, "runs/pets")
    desk.run.job.unlink()
    assert f"pets is job {job} already" in desk.refused(3, "pets.yaml"), "as after a kill before the id was noted"
    cluster.run("scancel", job)
    cluster.wait(job, ["CANCELLED", ""])
    lease = Lease(desk.run.lease)
    try:
        assert f"in use by process {os.getpid()}" in desk.refused(3, "pets.yaml")
    finally:
        lease.release()
    assert desk.submit() != job


def test_two_submissions_at_once_hand_in_one_job(desk: Desk, cluster: TestCluster) -> None:
    desk.hold()
    words = [sys.executable, "-m", "launcher", "submit", "pets.yaml"]
    both = [
        subprocess.Popen(
            words, cwd=desk.folder, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL,
            env={**cluster.environment, "PYTHONPATH": str(ROOT), "XDG_CONFIG_HOME": str(desk.folder.parent)},
        ) for _ in range(2)
    ]  # fmt: skip
    assert sorted(one.wait(timeout=60) for one in both) == [0, 3]
    assert len(cluster.run("squeue", "-h").stdout.splitlines()) == 1


def test_what_sbatch_refuses_can_be_submitted_again(desk: Desk) -> None:
    assert "sbatch refused: " in desk.refused(3, "pets.yaml", "resources.partition=nowhere")
    assert not desk.run.job.exists()
    desk.hold()
    desk.submit("resources.partition=urgent")
    assert "--partition=urgent" in (desk.run.path / "job.sbatch").read_text()


def test_a_run_that_began_keeps_its_code_unless_changes_are_accepted(desk: Desk, cluster: TestCluster) -> None:
    desk.hold()
    cluster.run("scancel", desk.submit())
    nets = desk.run.code / "files" / "nets.py"
    first = nets.read_text()
    (desk.folder / "nets.py").write_text(first + "# second\n")
    cluster.run("scancel", desk.submit())
    assert nets.read_text().endswith("# second\n"), "nothing was learnt yet: the code of now"
    desk.run.metrics.write_text('{"step": 1}\n')
    (desk.folder / "nets.py").write_text(first + "# third\n")
    done = desk.graft("submit", "pets.yaml")
    assert "the code changed since, and the run goes on with its own; --accept-changes takes the new" in done.stdout
    assert nets.read_text().endswith("# second\n")
    cluster.cancel_all()
    desk.submit("--accept-changes")
    assert nets.read_text().endswith("# third\n")
    assert "GRAFT_OPTIONS=(--accept-changes)\n" in (desk.run.path / "job.sbatch").read_text()
    cluster.cancel_all()
    elsewhere = desk.graft("submit", "runs/pets", "--json")
    assert elsewhere.returncode == 0, elsewhere.stderr
    assert json.loads(elsewhere.stdout)["code"].startswith("that of the first submission")


def test_other_settings_are_refused_and_leave_the_snapshot_alone(desk: Desk, cluster: TestCluster) -> None:
    desk.hold()
    cluster.run("scancel", desk.submit())
    desk.run.metrics.write_text('{"step": 1}\n')
    (desk.folder / "nets.py").write_text("other")
    before = (desk.run.code / "code.json").read_text()
    assert "optimizer.lr: 0.001 -> 0.5" in desk.refused(3, "pets.yaml", "optimizer.lr=0.5")
    assert (desk.run.code / "code.json").read_text() == before


def test_a_folder_is_handed_in_again_with_its_own_script(
    desk: Desk, cluster: TestCluster, monkeypatch: pytest.MonkeyPatch
) -> None:
    desk.hold()
    first = desk.submit()
    script = (desk.run.path / "job.sbatch").read_text()
    monkeypatch.setenv("SLURM_CONF", cluster.environment["SLURM_CONF"])
    monkeypatch.setenv("SQUEUE_STATES", "R")  # a setting of the user's that would hide a job that waits
    with pytest.raises(RefusedError, match=f"pets is job {first} already"):
        submit_folder(desk.run)
    monkeypatch.delenv("SQUEUE_STATES")
    cluster.run("scancel", first)
    cluster.wait(first, ["CANCELLED", ""])
    second = submit_folder(desk.run)
    assert second != first
    assert json.loads(desk.run.job.read_text())["id"] == second
    assert (desk.run.path / "job.sbatch").read_text() == script
    cluster.cancel_all()
    desk.run.mark("DONE", "6 steps", 0, 6)
    with pytest.raises(RefusedError, match="pets is done already"):
        submit_folder(desk.run)


def test_a_job_that_cannot_be_noted_is_told(desk: Desk) -> None:
    desk.hold()
    desk.run.job.mkdir(parents=True)  # as unwritable as on a full disk
    done = desk.graft("submit", "pets.yaml")
    assert done.returncode == 1
    job = desk.cluster.run("squeue", "-h", "-o", "%i").stdout.strip()
    assert f"pets is job {job}, and {desk.run.job} cannot be written" in done.stderr
    assert f"`scancel {job}`" in done.stderr
    assert "Traceback" not in done.stderr


def test_a_member_of_a_sweep_is_handed_in_alone_with_the_code_of_its_array(
    desk: Desk, cluster: TestCluster, monkeypatch: pytest.MonkeyPatch
) -> None:
    desk.hold()
    cluster.run("scancel", desk.submit())
    script = desk.run.path / "job.sbatch"
    of_the_run = script.read_text()
    script.unlink()
    body = desk.folder / "body.sbatch"
    text = of_the_run.replace(f"GRAFT_RUN={desk.run.path}\n", "GRAFT_RUN=${1-}\n")
    assert text != of_the_run
    body.write_text(text.replace(f"--output={desk.run.logs}/", "--output=/sweep/log/"))
    desk.run.job.write_text(json.dumps({"id": "0_1", "cluster": None, "script": str(body)}))
    monkeypatch.setenv("SLURM_CONF", cluster.environment["SLURM_CONF"])
    job = submit_folder(desk.run)
    assert script.read_text() == of_the_run
    assert f"Command={script}" in cluster.run("scontrol", "show", "job", job).stdout


def test_a_trainer_of_the_users_own_is_not_run(desk: Desk, cluster: TestCluster) -> None:
    (desk.folder / "trainer.py").write_text("raise SystemExit('not this one')\n")
    (desk.folder / "launcher").mkdir()
    (desk.folder / "launcher" / "__init__.py").write_text("raise SystemExit('nor this one')\n")
    done = desk.graft("submit", "pets.yaml", "--json", PYTHONSAFEPATH="1")
    assert done.returncode == 0, done.stderr
    job = str(json.loads(done.stdout)["job"])
    assert "GRAFT_SAFEPATH=1\n" in (desk.run.path / "job.sbatch").read_text()
    cluster.wait(job, ["COMPLETED", "FAILED", "CANCELLED"], timeout=90)
    marker = desk.run.marker()
    assert marker is not None, (desk.run.logs / f"slurm-{job}.out").read_text()
    assert marker.state == "DONE"


def test_without_a_repository_nothing_is_copied_and_that_is_said(desk: Desk, cluster: TestCluster) -> None:
    desk.hold()
    done = desk.graft("submit", "pets.yaml", GIT_CEILING_DIRECTORIES=str(desk.folder.parent), PATH=os.environ["PATH"])
    assert "copied into" in done.stdout
    cluster.cancel_all()
    (desk.folder / ".git").rename(desk.folder / "no-git")
    bare = desk.graft("submit", "pets.yaml", "name=bare")
    assert "which is no git repository: nothing is copied" in bare.stdout
    assert f"GRAFT_CODE={desk.folder}\n" in (desk.folder / "runs" / "bare" / "job.sbatch").read_text()


def test_weights_that_offline_nodes_cannot_fetch_are_refused(desk: Desk, tmp_path: Path) -> None:
    (desk.folder / "configs" / "clusters" / "site.yaml").write_text("network: false\noptions: [--hold]\n")
    words = ["model.source=torchvision:resnet18", "model.weights=IMAGENET1K_V1", "model.adapt={}"]
    places = {"TORCH_HOME": str(tmp_path / "torch"), "XDG_CACHE_HOME": str(tmp_path / "cache")}
    said = desk.refused(2, "pets.yaml", *words, **places)
    assert "the weights IMAGENET1K_V1 of torchvision:resnet18 were not fetched into this cache; `graft fetch RUN` does" in said
    weights = tmp_path / "resnet18.pth"
    weights.write_bytes(b"as `graft fetch` would have brought them")
    note = "import sys, pathlib; from trainer.rundir.fetched import note; note(*sys.argv[1:3], [pathlib.Path(sys.argv[3])])"
    fetched = [sys.executable, "-c", note, "torchvision:resnet18", "IMAGENET1K_V1", str(weights)]
    subprocess.run(fetched, cwd=ROOT, env={**desk.cluster.environment, **places}, check=True, timeout=30)
    desk.submit(*words, **places)
    assert "GRAFT_OFFLINE=1\n" in (desk.run.path / "job.sbatch").read_text()
