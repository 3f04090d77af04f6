"""A user at a cluster: a repository, the commands, and what a job writes."""

from __future__ import annotations

import json
import subprocess
import sys
import time
from pathlib import Path

from tests.cluster.daemons import TestCluster
from trainer.rundir import RunDir

ROOT = Path(__file__).resolve().parents[2]
RUN = """\
name: pets
model: {source: "python:nets.py:factory", adapt: {in_channels: 1, image_size: 16}}
strategy: {kind: full}
data: {train: "digits:0-4/train", val: "digits:0-4/val"}
optimizer: {kind: adam, lr: 1e-3}
train: {steps: 6, global_batch: 32}
parallel: {device: cpu}
"""
NETS = """\
from pathlib import Path
from torch import nn
def factory():
    Path(MARK).write_text(__file__)
    return nn.Sequential(nn.AdaptiveAvgPool2d(4), nn.Flatten(), nn.Linear(16, 5))
"""


class Desk:
    """A user's repository on the login node."""

    def __init__(self, folder: Path, cluster: TestCluster) -> None:
        self.folder, self.cluster = folder, cluster
        folder.mkdir()
        (folder / "pets.yaml").write_text(RUN)
        self.mark = folder.parent / "mark"
        (folder / "nets.py").write_text(NETS.replace("MARK", repr(str(self.mark))))
        (folder / ".gitignore").write_text("runs/\n")
        (folder / "configs" / "clusters").mkdir(parents=True)
        (folder / "configs" / "clusters" / "site.yaml").write_text("cpus_per_gpu: 1\ntime: '0:10:00'\n")
        self.git("init", "-q")
        self.git("add", "-A")
        self.git("commit", "-q", "-m", "first")
        self.run = RunDir(folder / "runs" / "pets")

    def git(self, *words: str) -> None:
        subprocess.run(["git", "-c", "user.name=a", "-c", "user.email=a@b", *words], cwd=self.folder, check=True, timeout=30)

    def graft(self, *words: str, **environment: str) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            [sys.executable, "-m", "launcher", *words], cwd=self.folder, capture_output=True, text=True, timeout=60, check=False,
            env={**self.cluster.environment, "PYTHONPATH": str(ROOT), "XDG_CONFIG_HOME": str(self.folder.parent), **environment},
        )  # fmt: skip

    def submit(self, *words: str, **environment: str) -> str:
        """Submit; returns the job's id."""
        done = self.graft("submit", "pets.yaml", "--json", *words, **environment)
        assert done.returncode == 0, done.stderr
        return str(json.loads(done.stdout)["job"])

    def refused(self, code: int, *words: str, **environment: str) -> str:
        """The message of a submission that must be refused, with nothing in the queue because of it."""
        before = self.cluster.run("squeue", "-h", "-o", "%i").stdout
        done = self.graft("submit", *words, **environment)
        assert done.returncode == code, done.stdout + done.stderr
        assert "Traceback" not in done.stderr
        assert self.cluster.run("squeue", "-h", "-o", "%i").stdout == before
        return done.stderr

    def hold(self) -> None:
        """Jobs wait from now on, and start nothing."""
        (self.folder / "configs" / "clusters" / "site.yaml").write_text("options: [--hold]\n")


def finished(path: Path, timeout: float = 60) -> str:
    """The text of a file that a job writes, once its last line is there."""
    deadline = time.monotonic() + timeout
    while time.monotonic() < deadline:
        if path.exists() and path.read_text().endswith("end\n"):
            return path.read_text()
        time.sleep(0.1)
    raise AssertionError(f"{path} is not finished after {timeout} s: {path.read_text() if path.exists() else 'not there'}")
